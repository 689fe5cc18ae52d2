"""Forgets a client's credentials on purpose: ``make leaks`` must find them.

A leak check that finds nothing may be one that cannot: what the interpreter
allocates is passed over (lsan.supp), and with it all that hangs on it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys

sys.path.insert(0, os.environ["TWAPI_TLS_TESTNATIVE"])
credential = importlib.import_module("_testnative").credential("client")
# Its SecHandle becomes null: the object goes, what it owned stays.
ctypes.memset(id(credential) + object.__basicsize__, 0, 2 * ctypes.sizeof(ctypes.c_void_p))
del credential
