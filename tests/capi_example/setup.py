"""A stranger's extension: it knows twapi_tls by its installed header alone."""

from setuptools import Extension, setup

import twapi_tls

setup(
    name="tls_echo",
    version="1",
    py_modules=[],
    ext_modules=[
        Extension(
            "tls_echo",
            ["tls_echo.c"],
            include_dirs=[twapi_tls.get_include()],
            extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ],
)
