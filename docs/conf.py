"""How the documentation is built: ``-b html`` makes the pages, ``-b doctest`` runs their examples."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import txsmtpd  # noqa: E402

project = "txsmtpd"
author = "the txsmtpd developers"
copyright = author
version = release = txsmtpd.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "from_the_code", "plain_signatures"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"txsmtpd {version}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["docs.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "class"
toc_object_entries_show_parents = "hide"

doctest_test_doctest_blocks = ""  # the tests run the examples in docstrings
doctest_global_setup = """
from hypothesis import HealthCheck, settings
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # examples pass on a busy machine, too
del HealthCheck, settings
import quiet_log
"""
