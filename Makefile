# Two commands do everything, set-up included:
#
#   make run     boot the SVE guest on a real arm64 KVM (in an emulated host where this is no arm64)
#   make test    lint, type-check, and test: on this machine and inside the emulated host
#
# Either leaves .venv/bin/pyvmm ready.  Nothing is installed outside .venv, build/ and the cache
# (~/.cache/pyvmm, `pyvmm host rm --all` empties it).  A target's file is complete or absent.

PYTHON	?= python3
VENV	:= .venv
BIN	:= $(VENV)/bin
TOOLS	:= build/tools
# Seen from guests/ and programs/: no absolute path is in these files, which could hold a space.
GCC	:= ../$(TOOLS)/aarch64-linux-gnu-gcc
LOGGED	:= @sh scripts/logged.sh

.PHONY: bench can-run run test lint test-units test-e2e test-guests test-kvm test-matrix test-install \
	test-pythons test-distros test-interrupted test-native guests tools test-tools venv dev wheel \
	sdist clean
.DELETE_ON_ERROR:

run: can-run guests
	$(BIN)/pyvmm run --sve-vls=128,256 sve-vls
	@printf '\nWhat to type next:\n'
	@printf '  %-40s %s\n' '$(BIN)/pyvmm run --help' 'every option' \
		'$(BIN)/pyvmm run -i initrd.gz Image' 'your own kernel' \
		'make test' 'lint, types, and all tests'
	@echo 'README.md shows what else pyvmm does, and lists its documentation.'

# Every part, two at a time, and a summary; a part's log is in build/test-logs.  tests/parts.py says
# what the parts run.
test: can-run dev guests test-tools
	@$(BIN)/python -m tests.parts

test-kvm test-e2e test-guests: can-run

lint test-units test-e2e test-guests test-kvm: dev guests test-tools
	$(BIN)/python -m tests.parts $(@:test-%=%)

# Every kernel with every kind of host, as host and as guest, which takes an hour or more: not a
# part of `make test`.
test-matrix: dev guests test-tools
	$(BIN)/python -m pytest -m "matrix and not kvm" -s --ignore=tests/install

# Installed from a wheel, an sdist and a clone, by pip, pipx and uv, with each Python there is, and
# used with the clone gone: a quarter of an hour, and it fetches from the package index.
test-install: dev guests test-tools
	$(BIN)/python -m pytest -m "matrix and not kvm" -s tests/install

# The unit tests on each Python that pyvmm supports, got from Debian where it is not installed.
# PYTHONS chooses, as `make test-pythons PYTHONS=3.14`.
test-pythons: dev guests test-tools
	$(BIN)/python scripts/test_pythons.py $(PYTHONS)

# The two commands on fresh Debian 12 and 13 systems, as root and as a user: needs root and an hour.
# DISTRO chooses, as `make test-distros DISTRO="trixie --user root --only run"`.
test-distros:
	$(PYTHON) scripts/test_distros.py $(DISTRO)

# The first `make run`, interrupted at ten moments and run again: half an hour.
test-interrupted:
	$(PYTHON) scripts/test_interrupted.py $(MOMENT)

# pyvmm beside Debian's QEMU: build/bench.json and build/bench.md.  BENCH chooses, as `make bench
# BENCH=exits`: see benchmarks/__main__.py.  Real times want a machine that does nothing else.
bench: dev guests
	$(BIN)/python -m benchmarks $(BENCH)

# Refuses an arm64 machine whose /dev/kvm cannot be opened, before anything is downloaded.
can-run:
	@$(PYTHON) scripts/can_run.py

# pyvmm as its users type it on an arm64 machine of its own, which QEMU emulates: an hour or more.
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

# Wrappers of tools that lie in the cache: looked after each time, as the cache may be gone.
tools: $(VENV)/.ready
	@$(BIN)/python -m pyvmm.host.parts.tools $(TOOLS) aarch64-linux-gnu-gcc aarch64-linux-gnu-objcopy

test-tools: tools
	@$(BIN)/python -m tests.tools $(TOOLS) dtc mandoc tmux mke2fs e2fsck debugfs cpio busybox zstd

# dist/: the sdist, and the wheel of this machine's architecture made from it.
wheel: dev
	$(BIN)/python -m build --no-isolation .

sdist: dev
	$(BIN)/python -m build --no-isolation --sdist .

clean:
	rm -rf build dist share $(VENV) pyvmm/guests pyvmm/programs *.egg-info
