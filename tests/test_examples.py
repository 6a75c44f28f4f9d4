"""The examples run, and the diff that the documentation quotes is the real one."""

import difflib
import importlib.util
import re

import jax
import numpy as np
import pytest

from mmssl.gradients import Harmonizer, Vmap
from tests.conftest import ROOT
from tests.data import media_files
from tests.export import exports

pytestmark = pytest.mark.usefixtures("compile_quickly")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(lines):
    """Lines that a diff adds or takes away, but for headings and blank ones."""
    return [x for x in lines if re.match(r"[+-](?![+-]{2}) *\S", x)]


def body(name):
    text = (ROOT / "examples" / name).read_text()
    return text.split('"""\n', 1)[1].splitlines()


def test_the_diff_in_the_docs_is_the_difference_of_the_examples():
    page = (ROOT / "docs" / "harmonization.md").read_text()
    (quoted,) = re.findall(r"```diff\n(.*?)```", page, flags=re.DOTALL)
    diff = difflib.unified_diff(
        body("your_step.py"), body("harmonize_your_step.py"), lineterm=""
    )
    found = changed(diff)
    assert changed(quoted.splitlines()) == found
    added = [x for x in found if x.startswith("+") and "import" not in x]
    assert len(added) == 5


def test_the_harmonized_example_prints_its_conflicts(capsys):
    load("harmonize_your_step.py").main(steps=10)
    out = capsys.readouterr().out
    assert re.search(r"step 10 .*conflict/rate/va_vt 0\.[1-9]", out)
    assert re.search(r"loss \d\.\d+$", out)


def test_your_own_video_is_embedded(capsys, tmp_path):
    clip = media_files.encode(times=np.arange(12) / 12, wave=media_files.tone(1.0))
    (tmp_path / "mine.mp4").write_bytes(clip)
    exports.write(tmp_path / "encoder", exports.VARIANTS["specific"])
    texts = ("red ball", "blue box")
    found = load("embed_your_video.py").main(
        tmp_path / "encoder", tmp_path / "mine.mp4", *texts
    )
    assert found.shape == (1, 6)
    np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == list(texts)


def test_with_unit_weights_it_is_the_plain_example(monkeypatch):
    plain, other = load("your_step.py"), load("harmonize_your_step.py")
    rule = Harmonizer(engine=Vmap(scope=".*"), monitor=True)
    monkeypatch.setitem(other.how, "harmonizer", rule)
    params = plain.init(plain.KEY)
    batch = plain.make_batch(jax.random.key(1))
    state = plain.optimizer.init(params)
    expected, _, wanted = plain.step(params, state, batch)
    found, _, metrics = other.step(params, state, batch)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-6)
    # Adam divides by the gradient's size: compare what moved, not how far it might.
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
