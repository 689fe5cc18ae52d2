"""These run where scripts/windows-test started them: with the lane set up.

TWAPI_TLS_LANE_PYTHON says which Windows Python plays the other end,
TWAPI_TLS_LANE_SIZE how many bytes go each way.
"""

from __future__ import annotations

import os

import pytest
from certs import Pki, make_pki

collect_ignore_glob = [] if os.environ.get("TWAPI_TLS_LANE_PYTHON") else ["test_*.py"]


@pytest.fixture(scope="session")
def wine_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for a server under Wine; see ``make_pki``."""
    return make_pki(tmp_path_factory.mktemp("wine-pki"), wine=True)
