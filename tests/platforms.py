"""What this platform cannot show, in one place, each with its reason.

Wine's Schannel (secur32 over GnuTLS, crypt32 without CNG keys) is not
Windows'. What it gets wrong is known and listed here by the test's name: such
a test is skipped there, and carried by the OpenSSL engine's run of the same
test, by the scripted table, or by a real Windows in the workflows. Nothing
else is skipped: a test that fails under Wine for another reason is a defect.
"""

from __future__ import annotations

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
