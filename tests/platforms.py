"""What this platform cannot show, in one place, each with its reason.

Wine's Schannel (secur32 over GnuTLS, crypt32 without CNG keys) is not
Windows'. What it gets wrong is known and listed here by the test's name: such
a test is skipped there, and carried by the OpenSSL engine's run of the same
test, by the scripted table, or by a real Windows in the workflows. Nothing
else is skipped: a test that fails under Wine for another reason is a defect.
"""

from __future__ import annotations

import os
import re
import sys


def wine_version() -> str:
    """Wine's version where it stands in for Windows, else ""."""
    if sys.platform != "win32":
        return ""
    import ctypes

    try:
        tell = ctypes.windll.ntdll.wine_get_version
    except AttributeError:
        return ""
    tell.restype = ctypes.c_char_p
    return bytes(tell()).decode()


WINDOWS = sys.platform == "win32"
WINE = bool(wine_version())
# With GnuTLS' switch Wine's Schannel does TLS 1.3 whatever it is asked for,
# without it TLS 1.2; scripts/windows-lane, LANE_TLS13.
WINE_TLS13 = WINE and bool(os.environ.get("GNUTLS_SYSTEM_PRIORITY_FILE"))


def skip_reason(test: str) -> str:
    """Why this test (file::name[parameters]) cannot be here; "" if it can."""
    if WINE:
        version = "1.2" if WINE_TLS13 else "1.3"
        if re.search(rf"\[.*(?<![\d.]){re.escape(version)}(?![\d.])", test):
            return f"Wine does TLS {'1.3' if WINE_TLS13 else '1.2'} in this run"
    return ""
