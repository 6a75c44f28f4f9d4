"""`mmssl data view`: a dataset's summary and some of its clips, as one HTML page."""

from mmssl.viewer.view import view_dataset

__all__ = ["view_dataset"]
