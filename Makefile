# machinist: `make help` says what can be made.

DESTDIR ?=
PREFIX ?= /usr/local
CARGO ?= cargo

# Settings and units are found by machinist and systemd in these places, whatever the prefix.
SYSCONFDIR ?= /etc
BINDIR = $(PREFIX)/bin
# machinist looks for its helper in ../libexec from where it is.
LIBEXECDIR = $(PREFIX)/libexec
DATADIR = $(PREFIX)/share
UNITDIR ?= $(PREFIX)/lib/systemd/system
# Debian's zsh looks for those of packages elsewhere.
ZSHDIR ?= $(DATADIR)/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
BASHDIR ?= $(DATADIR)/bash-completion/completions
FISHDIR ?= $(DATADIR)/fish/vendor_completions.d
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/machinist

TARGET = $(or $(CARGO_TARGET_DIR),target)
BINARY = $(TARGET)/release/machinist
SOURCES = Cargo.toml Cargo.lock $(shell find src -type f)
EXAMPLES = $(wildcard nspawn-examples/*)
UNITS = machinist-clean.service machinist-clean.timer machinist-console@.service
# What cargo-deb packs besides the binary.
STAGE = target/package

.DEFAULT_GOAL := help
.PHONY: all build try check bench fuzz soak install install-data uninstall deb clean help

help:
	@echo 'make try        see it work: a Debian machine is made, started, listed, stopped and removed'
	@echo 'make check      run all tests: on Debian 12, 13 and testing, and in a virtual machine'
	@echo 'make            this help'
	@echo 'make build      build $(BINARY)'
	@echo 'make install    install it; PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo 'make uninstall  remove what install installed; machines and settings stay'
	@echo 'make deb        build a Debian package in target/debian'
	@echo 'make bench      measure it beside its peers'
	@echo 'make fuzz       try ten minutes of broken .nspawn files on it; needs nightly and cargo-fuzz'
	@echo 'make soak       kill it, and cut the power, hundreds of times in the middle of what it does'
	@echo 'make clean      remove what was built'

all build: $(BINARY)

# No network is used after `cargo fetch`.
$(BINARY): $(SOURCES)
	$(CARGO) build --release --locked
	@touch $@

try:
	@tests/host/try

check:
	@tests/check

bench: $(BINARY)
	MACHINIST_BIN=$(abspath $(BINARY)) tests/bench/run

fuzz:
	tests/fuzz/run

soak: $(BINARY)
	$(CARGO) build --locked
	tests/host/soak kill
	MACHINIST_BIN=$(BINARY) tests/host/soak power

install: install-data
	install -D -m 755 $(BINARY) $(DESTDIR)$(BINDIR)/machinist
	install -D -m 755 $(BINARY)-helper $(DESTDIR)$(LIBEXECDIR)/machinist-helper
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

# An existing configuration is the administrator's: never overwritten. The present defaults lie in the documentation.
install-data: $(BINARY)
	mkdir -p $(DESTDIR)$(MANDIR) $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR) $(DESTDIR)$(UNITDIR)
	$(BINARY) man --output $(DESTDIR)$(MANDIR)
	$(BINARY) completions bash >$(DESTDIR)$(BASHDIR)/machinist
	$(BINARY) completions zsh >$(DESTDIR)$(ZSHDIR)/_machinist
	$(BINARY) completions fish >$(DESTDIR)$(FISHDIR)/machinist.fish
	for unit in $(UNITS); do \
		sed 's|@BINDIR@|$(BINDIR)|g; s|@LIBEXECDIR@|$(LIBEXECDIR)|g' units/$$unit.in >$(DESTDIR)$(UNITDIR)/$$unit && \
		chmod 644 $(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done
	install -D -m 644 -t $(DESTDIR)$(DOCDIR) README.md CHANGELOG.md units/machinist.conf
	for example in $(EXAMPLES); do \
		install -D -m 644 -t $(DESTDIR)$(DOCDIR)/nspawn-examples $$example || exit 1; \
	done
	@if [ -e $(DESTDIR)$(SYSCONFDIR)/machinist/machinist.conf ]; then \
		echo 'kept $(DESTDIR)$(SYSCONFDIR)/machinist/machinist.conf'; \
	else \
		install -v -D -m 644 units/machinist.conf $(DESTDIR)$(SYSCONFDIR)/machinist/machinist.conf; \
	fi

uninstall:
	@[ -n "$(DESTDIR)" ] || sh units/debian/prerm remove
	rm -f $(DESTDIR)$(BINDIR)/machinist $(DESTDIR)$(LIBEXECDIR)/machinist-helper
	rm -f $(DESTDIR)$(MANDIR)/man1/machinist.1 $(DESTDIR)$(MANDIR)/man1/machinist-*.1
	rm -f $(DESTDIR)$(MANDIR)/man7/machinist-*.7
	rm -f $(DESTDIR)$(BASHDIR)/machinist $(DESTDIR)$(ZSHDIR)/_machinist $(DESTDIR)$(FISHDIR)/machinist.fish
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	rm -rf $(DESTDIR)$(DOCDIR)
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo 'machines, their settings and $(SYSCONFDIR)/machinist stay'

deb: $(BINARY)
	@$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install cargo-deb --locked
	rm -rf $(STAGE) target/debian/machinist_*.deb
	@$(MAKE) --no-print-directory install-data DESTDIR=$(STAGE) PREFIX=/usr
	$(CARGO) deb --locked --no-build

clean:
	$(CARGO) clean
