"""Embeddings of your own video from an exported encoder.

pip install .  # in the folder of this repository
python examples/embed_your_video.py ENCODER my.mp4 "pouring a cup of tea" "a dog"
"""

import sys

import mmssl


def main(folder, video, *texts):
    with mmssl.load(folder) as encoder:  # ends its decoding processes afterwards
        clip = encoder.encode_video(video)  # [1, e], unit norm
        for text in texts:
            print(f"{(encoder.encode_text(text) @ clip.T).item():.3f}  {text}")
    return clip


if __name__ == "__main__":
    main(*sys.argv[1:])
