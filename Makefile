# SPDX-License-Identifier: MIT
#
# make             builds build/wspush, and never installs anything
# make run         builds it, serves on loopback, says how to push
# make test        runs everything; make help lists the rest
#
# For a packager: CC, CFLAGS, CPPFLAGS, LDFLAGS and LDLIBS are yours, what we
# need stands in variables of our own.  BEARSSL=DIR takes BearSSL from a
# directory with include/ or inc/ and lib/ or build/; BEARSSL_LIBS overrides
# how it is linked; OUT=FILE is another place for the program.  PREFIX and
# DESTDIR as everywhere.

OUT = build/wspush
CFLAGS ?= -O2 -g
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 20

WARNINGS = -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes \
	-Wpointer-arith -Wcast-qual -Wwrite-strings -Wconversion \
	-Wno-sign-conversion -Wformat=2 -Wundef $(if $(CI),-Werror)
# 32-bit glibc's clocks end in 2038 unless they are asked for.
# Unwind tables would be pages in memory, whatever CFLAGS are; gdb finds its
# own in -g.
WSP_CFLAGS = -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64 \
	-fno-asynchronous-unwind-tables $(WARNINGS)
SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=all \
	-fno-omit-frame-pointer

# The static library where there is one: a router has no use for a shared one.
ifdef BEARSSL
WSP_CPPFLAGS = -isystem $(firstword \
	$(wildcard $(BEARSSL)/include $(BEARSSL)/inc) $(BEARSSL)/include)
BEARSSL_LIBS ?= $(firstword $(wildcard $(BEARSSL)/lib/libbearssl.a \
	$(BEARSSL)/build/libbearssl.a) -L$(BEARSSL)/lib -lbearssl)
else
BEARSSL_LIBS ?= $(or $(filter /%, \
	$(shell $(CC) -print-file-name=libbearssl.a 2>/dev/null)),-lbearssl)
endif

# The day of the build in seconds: a clock that shows less is wrong.
BUILD_DATE ?= $(or $(SOURCE_DATE_EPOCH),$(shell \
	git log -1 --format=%ct 2>/dev/null || date -r wspush.c +%s))

PROGRAM = -DWSP_TEXTS='"build/texts.h"' -DWSP_BUILD_DATE=$(BUILD_DATE)
COMPILE = $(CC) $(WSP_CPPFLAGS) $(CPPFLAGS) $(WSP_CFLAGS) $(CFLAGS)
LINK = $(WSP_LDFLAGS) $(LDFLAGS) $(BEARSSL_LIBS) $(LDLIBS)

# All of libc's functions are found at the start: found later, one by one, they
# would bring the linker's tables back into memory.
# Packed relocations are two pages less, for a linker and a libc (glibc 2.36)
# that know them: another libc would not start the program.
GLIBC_2_36 = $(shell echo __GLIBC__ __GLIBC_MINOR__ | \
	$(CC) $(CPPFLAGS) $(CFLAGS) -include features.h -E - 2>/dev/null | \
	awk '$$1 == 2 && $$2 >= 36')
WSP_LDFLAGS = -Wl,-z,now $(if $(GLIBC_2_36),$(shell $(CC) $(LDFLAGS) -Wl,--help \
	2>/dev/null | grep -q pack-relative-relocs && \
	echo -Wl,-z,pack-relative-relocs))

all: $(OUT) ## build/wspush (the default)

$(OUT): wspush.c wspush.h build/texts.h Makefile
	@$(need_bearssl)
	@mkdir -p $(@D)
	$(COMPILE) $(PROGRAM) -o $@ wspush.c $(LINK)

# The long texts as a list of numbers: the page without indentation, comments
# and empty lines, then the help, packed.
build/texts.h: tools/page.html tools/help.txt tools/pack Makefile
	@mkdir -p build
	{ sed -e 's/^	*//' -e '/^\/\*.*\*\/$$/d' -e '/^\/\*/,/\*\/$$/d' \
	    -e '/^$$/d' tools/page.html; echo %; cat tools/help.txt; } | \
	    od -An -v -tu1 | awk -f tools/pack >$@.new
	@mv $@.new $@

need_bearssl = echo '\#include <bearssl.h>' | \
	$(CC) $(WSP_CPPFLAGS) $(CPPFLAGS) $(CFLAGS) -E - >/dev/null 2>&1 || { \
	echo '$(firstword $(CC)) does not find bearssl.h. On Debian: apt-get' \
	    'install gcc libc6-dev libbearssl-dev. Elsewhere: make' \
	    'BEARSSL=DIRECTORY.' >&2; exit 1; }

# ----- the MQTT bridge: a program of its own, with libmosquitto

MQTT = $(CC) $(CPPFLAGS) $(WSP_CFLAGS) $(CFLAGS)

mqtt: build/wspush-mqtt ## build/wspush-mqtt, the bridge to an MQTT broker

build/wspush-mqtt: tools/mqtt/wspush-mqtt.c Makefile
	@mkdir -p $(@D)
	$(MQTT) -o $@ $< $(LDFLAGS) -lmosquitto $(LDLIBS)

build/asan/wspush-mqtt: tools/mqtt/wspush-mqtt.c Makefile
	@mkdir -p $(@D)
	gcc $(WSP_CFLAGS) -O1 -g $(SANITIZE) -o $@ $< -lmosquitto

run: ## build, then serve the test page on https://localhost:8443
	@tools/packages build
	@$(MAKE) --no-print-directory all
	@tools/run

install: all ## install into $(DESTDIR)$(PREFIX)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include \
	    $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(OUT) $(DESTDIR)$(PREFIX)/bin/wspush
	install -m 644 wspush.h $(DESTDIR)$(PREFIX)/include/wspush.h
	install -m 644 tools/wspush.1 \
	    $(DESTDIR)$(PREFIX)/share/man/man1/wspush.1

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/wspush
	rm -f $(DESTDIR)$(PREFIX)/include/wspush.h
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/wspush.1

# ----- other machines: tools/cross fetches and builds

cross: ## programs for ARM, AArch64, MIPS and x86-64; prints their sizes
	@tools/packages build cross
	@tools/cross

clean: ## remove build/
	rm -rf build

# ----- tests: tools/test-run builds these and runs them

test: ## every test there is; installs what they need
	@rm -f build/verdict
	@tools/packages build test
	@/usr/bin/python3 tools/test-run

fuzz: ## each fuzzer for FUZZ_SECONDS (20)
	@tools/packages build test
	@FUZZ_SECONDS=$(FUZZ_SECONDS) /usr/bin/python3 tools/test-run fuzz

test-arm: ## unit tests on ARM and AArch64 under qemu, and the main story
	@tools/packages build test cross
	@tools/cross -f armhf arm64
	@tools/cross armhf
	@/usr/bin/python3 tools/test-run arm

TEST_DEPENDS = wspush.c wspush.h build/texts.h Makefile $(wildcard test/*.h)

# A test of the lower half renames main() before it includes wspush.c; every
# other test has the upper half alone.
TEST_CFLAGS = $(WSP_CFLAGS) -Wno-unused-function $(PROGRAM) \
	$(shell grep -q '^.define main ' $< || echo -DWSP_PURE_ONLY)

build/unit/%: test/%.c $(TEST_DEPENDS)
	@mkdir -p $(@D)
	gcc $(TEST_CFLAGS) -O2 -g -o $@ $< -lcmocka $(BEARSSL_LIBS)

build/asan/%: test/%.c $(TEST_DEPENDS)
	@mkdir -p $(@D)
	gcc $(TEST_CFLAGS) -O1 -g $(SANITIZE) -o $@ $< -lcmocka $(BEARSSL_LIBS)

build/arm/%: test/%.c $(TEST_DEPENDS)
	@mkdir -p $(@D)
	arm-linux-gnueabihf-gcc $(TEST_CFLAGS) -O2 -g -o $@ $< \
	    $(call OF_CROSS,armhf)

build/aarch64/%: test/%.c $(TEST_DEPENDS)
	@mkdir -p $(@D)
	aarch64-linux-gnu-gcc $(TEST_CFLAGS) -O2 -g -o $@ $< \
	    $(call OF_CROSS,arm64)

# Debian's cmocka is shared only; the tests find it where it was unpacked.
OF_CROSS = -isystem build/cross/$(1)/bearssl/include \
	-Lbuild/cross/$(1)/bearssl/lib -lcmocka -l:libbearssl.a \
	-Wl,-rpath,$(CURDIR)/build/cross/$(1)/bearssl/lib

build/fuzz/%: test/%.c $(TEST_DEPENDS)
	@mkdir -p $(@D)
	clang $(TEST_CFLAGS) -O1 -g -fsanitize=fuzzer $(SANITIZE) -o $@ $< \
	    $(BEARSSL_LIBS)

build/asan/wspush: wspush.c wspush.h build/texts.h Makefile
	@mkdir -p $(@D)
	gcc $(WSP_CFLAGS) -O1 -g $(SANITIZE) $(PROGRAM) -o $@ wspush.c \
	    $(BEARSSL_LIBS)

# Both compilers, at the levels that see different things, must be silent.
SILENT = $(addprefix build/silent/,gcc-O0 gcc-O2 gcc-Os clang-O0 clang-O2 mqtt)

build/silent/%: wspush.c wspush.h build/texts.h Makefile
	@mkdir -p $(@D)
	$(subst -, -,$*) $(WSP_CFLAGS) -Werror $(PROGRAM) -c -o $@.o wspush.c
	$(subst -, -,$*) $(WSP_CFLAGS) -Werror -Wno-unused-function \
	    -DWSP_PURE_ONLY -c -o $@.pure.o wspush.c
	@touch $@

# Every function of the upper half, also those that nobody calls, may ask the
# linker only for memory, strings and BearSSL.
build/pure: wspush.c wspush.h Makefile
	@mkdir -p $(@D)
	gcc $(WSP_CFLAGS) -Wno-unused-function -DWSP_PURE_ONLY -O1 \
	    -fkeep-static-functions -c -o $@.o wspush.c
	! nm -u $@.o | grep -Evw \
	    '(mem|str)[a-z]*|inet_pton|br_[a-z0-9_]*|__assert_fail|__stack_chk_fail|__[a-z]*_chk|_GLOBAL_OFFSET_TABLE_'
	@touch $@

# What the README promises: one file, one command.
build/alone: wspush.c wspush.h Makefile
	@mkdir -p $(@D)
	cc wspush.c -lbearssl -o $@

build/silent/mqtt: tools/mqtt/wspush-mqtt.c Makefile
	@mkdir -p $(@D)
	gcc $(WSP_CFLAGS) -Werror -O2 -c -o $@.o $<
	clang $(WSP_CFLAGS) -Werror -O2 -c -o $@.o $<
	@touch $@

silent-checks:
	@echo $(SILENT)

# ----- opinions

fmt: ## format wspush.c and wspush.h
	@tools/packages lint
	clang-format --style=file:tools/clang-format -i wspush.c wspush.h

lint: ## what clang-tidy and shellcheck think
	@tools/packages lint
	clang-tidy --quiet --config-file=tools/clang-tidy wspush.c -- \
	    $(WSP_CPPFLAGS) $(WSP_CFLAGS)
	shellcheck -x tools/packages tools/run tools/cross tools/bench/run \
	    tools/bench/costs tools/buildroot/S50wspush \
	    tools/openwrt/wspush/files/wspush.init tools/mqtt/wspush-mqtt.init \
	    .ci/run

rooms: ## the rooms of wspush.c: lines, functions, calls upward
	@tools/packages lint
	@/usr/bin/python3 tools/rooms wspush.c

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 12

# ----- figures: never a test

bench: ## wspush and Debian's packaged peers, as a table and a chart
	@tools/packages build bench
	@$(MAKE) --no-print-directory all
	@tools/bench/run

costs: ## how the costs of wspush grow
	@tools/packages build bench
	@$(MAKE) --no-print-directory all
	@tools/bench/costs

.PHONY: all mqtt run install uninstall clean cross test fuzz test-arm \
	silent-checks fmt lint rooms bench costs help
.DELETE_ON_ERROR:
