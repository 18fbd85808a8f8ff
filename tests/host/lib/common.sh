# shellcheck shell=bash disable=SC2034  # used by the other parts
# Settings, messages and small helpers shared by all parts.

readonly CACHE=${MACHINIST_TEST_CACHE:-/var/cache/machinist-tests}
# What concerns the network of the whole machine lies outside the cache: two caches share one network.
readonly NET_STATE=/run/machinist-tests
readonly SUITES='bookworm trixie forky'
readonly TREE_DAYS=7

say() { printf 'host: %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
bad_usage() { say "error: $*; see host help"; exit 2; }

# "No host here" has a status of its own, so that a caller can tell a skip from a failure.
cannot() {
    say "NO TEST HOST: $*"
    [[ ${MACHINIST_REQUIRE_HOST:-} == 1 ]] && exit 1
    exit 77
}

need_suite() {
    [[ " $SUITES " == *" ${1:-} "* ]] || bad_usage "suite '${1:-}' is not one of: $SUITES"
}

need_root() {
    [[ $EUID -eq 0 ]] || cannot 'building and booting hosts needs root'
}

random_hex() { od -An -N3 -tx1 /dev/urandom | tr -d ' \n'; }

# Start time of a process: together with the number it names one process for ever.
process_start() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The command name may hold spaces and parentheses: count the fields from its end.
    awk '{print $20}' <<<"${stat##*) }"
}

# is_alive PID START
is_alive() {
    [[ -n ${1:-} && -n ${2:-} && $(process_start "$1") == "$2" ]]
}

# wait_until SECONDS COMMAND...: true as soon as the command is. POLL is the pause between two looks.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep "${POLL:-0.1}"
    done
}

# install_program ROOT PATH: machinist and its helper, which lies beside it, without symbols: each `exec` reads all of the
# helper.
install_program() {
    local file strip=''
    ! command -v strip >/dev/null || strip=-s
    for file in "$2:$1/usr/bin/machinist" "$(dirname "$2")/machinist-helper:$1/usr/libexec/machinist-helper"; do
        install -D $strip -m 755 "${file%%:*}" "${file#*:}" || fail "cannot install '${file%%:*}'"
    done
    # As `make install` does: what these tests are about is started by systemd.
    sed 's|@LIBEXECDIR@|/usr/libexec|g' "$HERE/../../units/machinist-console@.service.in" \
        >"$1/usr/lib/systemd/system/machinist-console@.service"
}

# copy_into ROOT SRC:DST...: snapshots, so that a rebuild during a run disturbs nothing.
copy_into() {
    local root=$1 pair src dst
    shift
    for pair in "$@"; do
        src=${pair%%:*} dst=${pair#*:}
        [[ $dst == /* && -e $src ]] || fail "cannot copy '$pair': SRC must exist and DST be absolute"
        mkdir -p "$root$(dirname "$dst")"
        # A tree keeps its owners; a program belongs to root whoever built it.
        if [[ -d $src ]]; then cp -aT "$src" "$root$dst"; else install -m "$(stat -L -c %a "$src")" "$src" "$root$dst"; fi
    done
}
