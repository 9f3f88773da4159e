# Two commands do everything, set-up included:
#
#   make run     boot the SVE guest on a real arm64 KVM: this machine's, or an emulated host's
#   make test    lint, type-check, and test: on this machine and inside the emulated host
#
# Either leaves .venv/bin/pyvmm ready.  They write only to .venv, build/ and the cache
# (~/.cache/pyvmm; `pyvmm host rm --all` empties it).  A target's file is complete or absent.

PYTHON	?= python3
VENV	:= .venv
BIN	:= $(VENV)/bin
TOOLS	:= build/tools
# Relative to guests/ and programs/: an absolute path could contain a space.
GCC	:= ../$(TOOLS)/aarch64-linux-gnu-gcc
LOGGED	:= @sh scripts/logged.sh

.PHONY: bench can-run run test lint test-units test-e2e test-guests test-kvm test-matrix test-install \
	test-pythons test-distros test-interrupted test-native fuzz fuzz-corpus guests tools test-tools venv dev wheel \
	sdist clean
.DELETE_ON_ERROR:

run: can-run guests
	$(BIN)/pyvmm run --sve-vls=128,256 sve-vls
	@printf '\nWhat to type next:\n'
	@printf '  %-40s %s\n' '$(BIN)/pyvmm run --help' 'every option' \
		'$(BIN)/pyvmm run -i initrd.gz Image' 'your own kernel' \
		'make test' 'lint, types, and all tests'
	@echo 'README.md shows what else pyvmm does, and lists its documentation.'

# Run every part, two at a time, and print a summary; a part's log is in build/test-logs.
# tests/parts.py has the parts.
test: can-run dev guests test-tools
	@$(BIN)/python -m tests.parts

test-kvm test-e2e test-guests: can-run

lint test-units test-e2e test-guests test-kvm: dev guests test-tools
	$(BIN)/python -m tests.parts $(@:test-%=%)

# Test every kernel with every kind of host, as host and as guest: an hour or more, so not a part
# of `make test`.
test-matrix: dev guests test-tools
	$(BIN)/python -m pytest -m "matrix and not kvm" -s --ignore=tests/install

# Install from a wheel, an sdist and a clone, by pip, pipx and uv, with each installed Python, and use
# pyvmm without the clone: a quarter of an hour.  It downloads from the package index.
test-install: dev guests test-tools
	$(BIN)/python -m pytest -m "matrix and not kvm" -s tests/install

# Run the unit tests on each Python that pyvmm supports.  Missing ones come from Debian.
# PYTHONS chooses, as `make test-pythons PYTHONS=3.14`.
test-pythons: dev guests test-tools
	$(BIN)/python scripts/test_pythons.py $(PYTHONS)

# Run the two commands on fresh Debian 12 and 13 systems, as root and as a user: needs root and an
# hour.
# DISTRO chooses, as `make test-distros DISTRO="trixie --user root --only run"`.
test-distros:
	$(PYTHON) scripts/test_distros.py $(DISTRO)

# Interrupt the first `make run` at ten moments, and run it again: half an hour.
test-interrupted:
	$(PYTHON) scripts/test_interrupted.py $(MOMENT)

# Measure pyvmm beside Debian's QEMU: build/bench.json and build/bench.md.  BENCH chooses, as `make
# bench BENCH=exits`: see docs/benchmarks.md.  Real times need a machine that does nothing else.
# LKVM=PATH measures an lkvm for arm64, too.  KEEP=1 puts the figures into benchmarks/last.json.
bench: dev guests
	LKVM="$(LKVM)" KEEP=$(KEEP) $(BIN)/python -m benchmarks $(BENCH)

# Refuse an arm64 machine whose /dev/kvm cannot be opened, before anything is downloaded.
can-run:
	@$(PYTHON) scripts/can_run.py

# Fuzz all that reads untrusted input for TIME seconds in all: build/fuzz has logs, inputs and
# crashes.  FUZZ chooses, as `make fuzz TIME=60 FUZZ="image control"`.
TIME	?= 600
fuzz: $(VENV)/.fuzz test-tools
	@$(BIN)/python -m fuzz --time $(TIME) $(FUZZ)

# Replace the corpora in fuzz/corpus by a choice from those in build/fuzz.
fuzz-corpus: $(VENV)/.fuzz test-tools
	@$(BIN)/python -m fuzz --minimise $(FUZZ)

# Run pyvmm as its users type it, on an arm64 machine that QEMU emulates: an hour or more.
# STAGE chooses, as `make test-native STAGE="run tour"`.
test-native: dev
	$(BIN)/python -m scripts.native $(STAGE)

guests: tools
	$(LOGGED) build/guests.log "building the guests" \
		$(MAKE) --no-print-directory -C guests CC=$(GCC) PYTHON=../$(BIN)/python
	$(LOGGED) build/programs.log "building the programs" \
		$(MAKE) --no-print-directory -C programs CC=$(GCC)

venv: $(VENV)/.ready

dev: $(VENV)/.dev

$(VENV)/.ready: pyproject.toml setup.py scripts/make_venv.py
	@$(PYTHON) scripts/make_venv.py $(VENV)

# The tools of `make test`, into the same environment.
$(VENV)/.dev: $(VENV)/.ready
	@$(PYTHON) scripts/make_venv.py $(VENV) dev
	@touch $@

# atheris, into the same environment.
$(VENV)/.fuzz: $(VENV)/.dev
	@$(PYTHON) scripts/make_venv.py $(VENV) fuzz
	@touch $@

# Wrappers of tools in the cache.  They are checked each time, because the cache may be gone.
tools: $(VENV)/.ready
	@$(BIN)/python -m pyvmm.host.parts.tools $(TOOLS) aarch64-linux-gnu-gcc aarch64-linux-gnu-objcopy

test-tools: tools
	@$(BIN)/python -m pyvmm.host.parts.tools $(TOOLS) aarch64-linux-gnu-objdump
	@$(BIN)/python -m tests.tools $(TOOLS) dtc mandoc tmux mke2fs e2fsck debugfs cpio busybox gcc \
		zstd pzstd xz bzip2 lz4 lzop mkimage

# Build dist/: the sdist, and from it the wheel of this machine's architecture.
wheel: dev
	$(BIN)/python -m build --no-isolation .

sdist: dev
	$(BIN)/python -m build --no-isolation --sdist .

clean:
	rm -rf build dist share $(VENV) pyvmm/guests pyvmm/programs *.egg-info
