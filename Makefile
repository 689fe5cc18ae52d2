# twapi_tls: what a person types.
#
#   make demo       build, then show server and client on this machine
#   make test       lint, types, C unit programs, Windows' engine in Wine, pytest
#   make help       the rest
#
# PYTHON chooses the interpreter (3.11 or later); VENV the environment's place;
# WINDOWS=no leaves Windows' engine out of make test.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
SANITIZERS ?= address,undefined

export PYTHON

BIN := $(VENV)/bin
VPY := $(BIN)/python
# Errors only: what pip says of other folders and of editable builds is no news.
PIP := $(VPY) -m pip --disable-pip-version-check --no-input -qq
C_FILES := $(shell find csrc twapi_tls/include -name '*.[ch]' 2>/dev/null)
STAMPS := $(VENV)/.stamps
EXT_FILES := $(wildcard tests/native/counted.[ch] tests/native/ext/*.[ch] tests/native/sdk/*.[ch]) tests/native/setup.py

.DEFAULT_GOAL := help
.PHONY: help demo test lint native bench interop stress sanitized sanitize leaks valgrind coverage clean windows \
	windows-quick fuzz bootstrap bootstrap-test wheel bench-wheel refleaks tsan

help:
	@echo 'make demo      build, then show server and client on this machine'
	@echo 'make test      lint, types, C unit programs, Windows'"'"' engine in Wine, pytest'
	@echo 'make lint      ruff (check and format) and mypy --strict'
	@echo 'make native    the C unit programs and the fuzz targets'"'"' seeds'
	@echo 'make bench     the benchmarks, against ssl (BENCH_ARGS=--quick: some minutes;'
	@echo '               --plots: pictures into docs/)'
	@echo 'make interop   write tests/interop.md: us and other people'"'"'s TLS'
	@echo 'make stress    the long runs'
	@echo 'make sanitize  the tests with $(SANITIZERS), on both record paths'
	@echo 'make leaks     the C floors under LeakSanitizer, on both record paths'
	@echo 'make valgrind  the C unit programs under valgrind'
	@echo 'make refleaks  references that a test leaves behind (PYTHON: a debug build)'
	@echo 'make tsan      threads under TSan (PYTHON: a free-threaded build with it)'
	@echo 'make coverage  lines and branches of the Windows engine and the session machine (gcov)'
	@echo 'make wheel     sdist and wheel, repaired, audited, tested on each Python'
	@echo 'make clean     remove what was built'
	@echo 'make fuzz      FUZZ_CASES=$(FUZZ_CASES) records against the SSL object, then'
	@echo '               each fuzz target for FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make windows   build for Windows, test it under Wine (windows-quick: a part)'

bootstrap:
	@scripts/bootstrap build

bootstrap-test:
	@scripts/bootstrap test

# The environment.  A venv whose interpreter is gone is made again.
$(STAMPS)/venv: | bootstrap
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade pip 'setuptools>=70.1'
	@mkdir -p $(STAMPS) && touch $@

# The package, editable, with the dependencies of demo and test; the extension
# lands beside the modules.
$(STAMPS)/install: $(STAMPS)/venv pyproject.toml setup.py
	$(PIP) install --no-build-isolation --editable '.[cli,test]'
	@touch $@

$(STAMPS)/native: $(STAMPS)/install $(C_FILES)
	$(VPY) setup.py -q build_ext --inplace
	@touch $@

# The C floors below Python, for pytest; never in a wheel.
TESTNATIVE := build/testnative
$(STAMPS)/testnative: $(STAMPS)/install $(C_FILES) $(EXT_FILES)
	$(VPY) tests/native/setup.py -q build_ext
	@touch $@

$(STAMPS)/dev: $(STAMPS)/install
	$(PIP) install --no-build-isolation --editable '.[cli,test,dev]'
	@touch $@

demo: bootstrap $(STAMPS)/native
	$(VPY) -m twapi_tls demo

lint: bootstrap $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On both record paths: the engine of ours, and the SSL object's.
native: bootstrap
	scripts/native-tests
	TWAPI_TLS_RECORDS=openssl scripts/native-tests
	scripts/fuzz replay
	TWAPI_TLS_RECORDS=openssl scripts/fuzz replay session
	scripts/fuzz cases 50000

# What depends on who seals the records: all but the tests of the house, of
# another engine and of pure functions.
RECORD_TESTS = $(filter-out tests/test_architecture.py tests/test_win% \
	tests/test_session_scripted.py tests/test_schannel_scripted.py \
	tests/test_record.py tests/test_hello.py, \
	$(wildcard tests/test_*.py))

ifeq ($(WINDOWS),no)
WINDOWS_TESTS := @echo 'windows-test: left out (WINDOWS=no)'
else
WINDOWS_TESTS := VENV=$(VENV) scripts/windows-test quick
endif

# pytest comes last, so that its count is what one reads at the end.
test: export TWAPI_TLS_TESTNATIVE = $(TESTNATIVE)
test: bootstrap-test lint native $(STAMPS)/native $(STAMPS)/testnative
	$(WINDOWS_TESTS)
	TWAPI_TLS_RECORDS=openssl $(BIN)/pytest -q $(RECORD_TESTS) $(PYTEST_ARGS)
	$(BIN)/pytest $(PYTEST_ARGS)

$(STAMPS)/plots: $(STAMPS)/install
	$(PIP) install --no-build-isolation --editable '.[cli,test,bench]'
	@touch $@

BENCH_ARGS ?=
bench: bootstrap $(STAMPS)/native $(if $(findstring --plots,$(BENCH_ARGS)),$(STAMPS)/plots)
	$(VPY) -m twapi_tls bench $(BENCH_ARGS)

# The same for the wheel in dist/, with its own OpenSSL.
bench-wheel: bootstrap $(STAMPS)/native
	scripts/bench-wheel $(VPY) $(BENCH_ARGS)

# Writes tests/interop.md: which peers, which versions, what passed.
interop: export TWAPI_TLS_TESTNATIVE = $(TESTNATIVE)
interop: bootstrap-test $(STAMPS)/native $(STAMPS)/testnative
	$(VPY) tests/interop_table.py

stress: bootstrap-test $(STAMPS)/native
	$(VPY) tests/stress.py

# The instrumented build has a place of its own, so that the ordinary one
# beside the modules stays.  PYTHONSAFEPATH keeps the checkout out of sys.path.
SANITIZED := build/sanitize/lib
RUNTIME = $(shell $${CC:-gcc} -print-file-name=libasan.so)
sanitized: bootstrap-test $(STAMPS)/native
	scripts/native-tests -fsanitize=$(SANITIZERS) -fno-sanitize-recover=all
	TWAPI_TLS_RECORDS=openssl scripts/native-tests -fsanitize=$(SANITIZERS) -fno-sanitize-recover=all
	TWAPI_TLS_SANITIZE=$(SANITIZERS) TWAPI_TLS_DEBUG=1 $(VPY) setup.py -q \
		build --build-base build/sanitize --build-lib $(SANITIZED) --force
	TWAPI_TLS_SANITIZE=$(SANITIZERS) TWAPI_TLS_DEBUG=1 \
	TWAPI_TLS_TESTNATIVE=build/sanitize/testnative \
		$(VPY) tests/native/setup.py -q build_ext --force

# $(1): what the sanitizers are told; $(2): the tests.
sanitized-python = PYTHONPATH=$(CURDIR)/$(SANITIZED) PYTHONSAFEPATH=1 PYTHONMALLOC=malloc $(1) \
	TWAPI_TLS_SANITIZED=1 TWAPI_TLS_TESTNATIVE=build/sanitize/testnative \
	LD_PRELOAD="$(if $(findstring address,$(SANITIZERS)),$(RUNTIME))" $(VPY)
sanitized-pytest = $(sanitized-python) -m pytest -p no:cacheprovider --timeout 300 $(2) $(PYTEST_ARGS)

# Both record paths, as in make test.
NO_LEAKS := ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
sanitize: sanitized
	TWAPI_TLS_RECORDS=openssl $(call sanitized-pytest,$(NO_LEAKS),-q $(RECORD_TESTS))
	$(call sanitized-pytest,$(NO_LEAKS))

# What nobody holds any more at the end: the C unit programs, and the tests
# that drive the C floors hardest.
LEAK_TESTS = $(addprefix tests/test_, session_scripted.py schannel_scripted.py provider_contract.py \
	session.py adversary.py record.py hello.py wire.py)
# intercept_tls_get_addr=0: before LLVM 15 and GCC 13 the run time takes a loaded
# module's thread-local block of 48 bytes or less that begins 16 bytes into a page
# for an old C library's, reads bounds for it where there are none, and the check
# ends with "Tracer caught signal 11" (one run in sixty). Without it such a block
# is an ordinary allocation.
LEAKS := ASAN_OPTIONS=detect_leaks=1:malloc_context_size=3:intercept_tls_get_addr=0 \
	LSAN_OPTIONS=suppressions=tests/native/lsan.supp:print_suppressions=0
leaks: sanitized
	$(call sanitized-python,$(LEAKS)) tests/native/leak.py 2>&1 | grep 'LeakSanitizer: detected memory leaks'
	TWAPI_TLS_RECORDS=openssl $(call sanitized-pytest,$(LEAKS),-q $(filter $(RECORD_TESTS),$(LEAK_TESTS)))
	$(call sanitized-pytest,$(LEAKS),$(LEAK_TESTS))

valgrind: bootstrap-test
	scripts/native-tests
	@for program in build/native/test_*; do \
		echo "valgrind $$program"; \
		TW_ALLOC_STRIDE=199 valgrind -q --leak-check=full --errors-for-leak-kinds=definite \
			--error-exitcode=9 $$program || exit 1; \
	done

# References that a test leaves behind, as a debug build of CPython counts
# them (python3.11-dbg, or scripts/build-python's), once built with its headers.
#   make PYTHON=python3.11-dbg VENV=.venv-debug refleaks
REFLEAK_TESTS ?= $(addprefix tests/test_, session.py direct.py credentials.py certificates.py stores.py \
	contexts.py verify.py resumption.py)
# A debug build shows what others pass over: pip's open files.
refleaks: export PYTHONWARNINGS = ignore::ResourceWarning
refleaks: bootstrap $(STAMPS)/venv
	$(PIP) install --no-build-isolation '.[cli,test]'
	PYTHONSAFEPATH=1 $(VPY) tests/refleaks.py -q -m 'not peers and not slow' $(REFLEAK_TESTS) $(PYTEST_ARGS)

# Threads in Python and in C at once, where no GIL orders them:
#   CC=clang scripts/build-python build/python-tsan 3.14 --disable-gil --with-thread-sanitizer
#   make PYTHON=build/python-tsan/bin/python3.14 VENV=.venv-tsan tsan
# TSAN_OPTIONS may name CPython's own list of known races, which lies in its
# source: suppressions=Tools/tsan/suppressions_free_threading.txt.
TSAN_TESTS ?= $(addprefix tests/test_, wire.py direct.py channel.py listener.py verifier.py stores.py capi.py fork.py)
tsan: bootstrap $(STAMPS)/install
	TWAPI_TLS_SANITIZE=thread $(VPY) setup.py -q build --build-base build/tsan --build-lib build/tsan/lib --force
	PYTHONPATH=$(CURDIR)/build/tsan/lib PYTHONSAFEPATH=1 TWAPI_TLS_SANITIZED=1 \
		$(VPY) -m pytest -p no:cacheprovider --timeout 300 \
		-k 'thread or both or fork or child or crowd' $(TSAN_TESTS) $(PYTEST_ARGS)

# What the scripted tests run of the Windows engine and of the session
# machine, and what they do not: tests/windows_matrix.md has the reasons.
coverage: bootstrap-test $(STAMPS)/native
	$(VPY) scripts/coverage-native

# The released files, and the tests against them: WHEEL_PYTHONS, those there are.
WHEEL_PYTHONS ?= $(shell for v in 3.11 3.12 3.13 3.14; do \
	p=$$(ls -d $(HOME)/.pyenv/versions/$$v.*/bin/python$$v 2>/dev/null | tail -n1); \
	p=$${p:-$$(command -v python$$v)}; [ -n "$$p" ] && $$p -c 1 2>/dev/null && echo $$p; done)
wheel: bootstrap-test $(STAMPS)/dev
	$(PIP) install --no-build-isolation --editable '.[cli,test,dev,release]'
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows
	scripts/wheel $(VPY)
	scripts/wheel-test dist/*.whl $(WHEEL_PYTHONS)
	PYTEST_ARGS='tests/test_session.py' scripts/wheel-test dist/*.tar.gz $(firstword $(WHEEL_PYTHONS))

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(STAMPS)/native $(STAMPS)/testnative
	rm -f twapi_tls/*.so
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

FUZZ_SECONDS ?= 600
FUZZ_CASES ?= 5000000
fuzz: bootstrap-test
	scripts/fuzz cases $(FUZZ_CASES)
	scripts/fuzz $(FUZZ_SECONDS)

# Wine and Windows' own Pythons, fetched once into .lane: scripts/windows-lane.
# On a machine that cannot, it says why; in CI that fails.
windows: bootstrap-test $(STAMPS)/native
	VENV=$(VENV) scripts/windows-test

windows-quick: bootstrap-test $(STAMPS)/native
	VENV=$(VENV) scripts/windows-test quick
