"""Public data sets, as they lie on disk after downloading, to our manifest."""
