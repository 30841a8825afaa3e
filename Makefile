# Two commands do everything on a machine with Python >= 3.11 (with venv) and make:
#
#     make demo     make the environment if it is not there, and run the demonstration
#                   (make demo DEMO_ARGS=--forget: three devices forget a message)
#     make test     the same, and run the tests
#
# Another interpreter: make test PYTHON=python3.13. Some tests: make test TESTS=tests/test_wire.py

PYTHON ?= python3
VENV ?= .venv
# Optional parts to install: libp2p needs a C compiler and the headers of GMP.
EXTRAS ?= dev
TESTS ?= tests
DEMO_ARGS ?=
PYTEST_ARGS ?=
# Tests wait for other processes most of the time: files of them run side by side, three on two
# processors. tests/conftest.py says which ones begin.
WORKERS ?= 3

BIN := $(VENV)/bin
STAMP := $(VENV)/.walyoff-installed
SOURCES := walyoff transports codecs tests fuzz benchmarks examples

.PHONY: demo test check format fuzz install clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	@$(BIN)/walyoff demo $(DEMO_ARGS)

# A plug-in of pytest that comes with an upstream package breaks test runs when it is loaded
# by itself; what is needed is named in pyproject.toml. Where CI is set pytest draws differences of
# any size, which takes minutes for a megabyte.
test: $(STAMP)
	env -u CI -u BUILD_NUMBER PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest \
		-p xdist.plugin -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		$(PYTEST_ARGS) $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Every decoder and every machine without I/O for FUZZ_SECONDS each, about half an hour in all;
# FUZZ="frame reconciler" for some. What is found is left in fuzz/found.
FUZZ ?=
FUZZ_SECONDS ?= 60

fuzz: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS),fuzz]'
	$(BIN)/python -m fuzz.run --seconds $(FUZZ_SECONDS) $(FUZZ)

install: $(STAMP)

# An interrupted attempt leaves an environment without pip: it is made anew, one that works
# is kept and only brought up to date.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "walyoff needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV), a minute or so the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
