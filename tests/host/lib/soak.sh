# shellcheck shell=bash
# Inside of a host: verbs that make and change machines, to be killed, and what has to hold after that. Two machines are there
# all the time, `plain` and `linked`, and each has its name in /etc/mark; a third, `new`, is made of them.
state=/var/lib/machines layers=/var/lib/machinist/layers

fail() { echo "round ${round:-0} ($what): $*"; cat /tmp/said; exit 1; }
quiet() { machinist -q "$@" </dev/null >/tmp/said 2>&1; }
# Everything that there is of a name but the machine itself.
traces() {
    find /etc/systemd/system -name "*$1*" ! -name '*.service.d'
    cut -d' ' -f5 /proc/self/mountinfo | grep "/$1" || :
}
# is NAME TEXT: the machine runs, and is the one that says so.
is() { [[ $(machinist run "$1" -- cat /etc/mark </dev/null 2>/tmp/said) == "$2" ]] || fail "$1 is not what it was"; }

prepare() {
    local name
    what=prepare
    for name in plain linked; do
        quiet create "$name" template:busybox || fail 'create'
        echo "$name" >"$state/$name/etc/mark"
    done
    quiet clone --linked linked other || fail 'clone'
    quiet remove -y other || fail 'remove'
}

# Sets `source`, `words`, which are to be killed, and `what` they are, after what has to be done before.
# shellcheck disable=SC2034  # for who sources this
choose() {
    source=plain
    if ((RANDOM % 2)); then source=linked; fi
    case $((RANDOM % 7)) in
        0) what="clone $source"; words=(clone --full "$source" new) ;;
        1) what="clone --linked $source"; words=(clone --linked "$source" new) ;;
        2) what="rename $source"; words=(rename "$source" new) ;;
        3) what="run -x $source"; words=(run -x "$source" -- sleep 0.2) ;;
        4) what="clone --flatten $source"; words=(clone --flatten "$source") ;;
        5) what="a clone of a changed $source"; words=(clone --linked "$source" new)
            quiet run "$source" -- touch "/root/$RANDOM" || fail 'run' ;;
        6) what="remove of a clone of $source"; words=(remove -y new)
            quiet clone --linked "$source" new || fail 'clone' ;;
    esac
}

# Afterwards the machines are what they were or what they were to become, they run, and nothing else is left.
verify() {
    local left
    # What the killed call has asked systemd for may still be under way, and a machine may still be ending.
    for _ in {1..100}; do
        quiet clean || fail 'clean'
        [[ -n $(systemctl list-jobs --no-legend; find "$state" -maxdepth 1 -name '.#machinist*') ]] || break
        sleep 0.1
    done
    if [[ $what == rename* && -d $state/new ]]; then
        [[ ! -d $state/$source ]] || fail 'there are two'
        is new "$source"
        quiet rename new "$source" || fail 'rename back'
    fi
    is "$source" "$source"
    if [[ -d $state/new ]]; then
        is new "$source"
        quiet start new || fail 'start'
        quiet stop new || fail 'stop'
        quiet remove -y new || fail 'remove'
    fi
    left=$(traces new; find "$state" -maxdepth 1 -name '.#machinist*'
        systemctl list-units --no-legend --state=active 'machinist-run-*' 'machinist-thaw-*')
    [[ -z $left ]] || fail "left: $left"
    left=$(machinist clean --dry-run --json </dev/null | jq -r '.items[] | select(.what | startswith("layer")) | .path')
    [[ -z $left ]] || fail "layers that nobody needs: $left"
    # A chain of layers does not grow for ever.
    ((round % 20)) || quiet clone --flatten "$source" || fail 'flatten'
}

finish() {
    quiet remove -y plain linked || fail 'remove'
    [[ -z $(ls -A "$layers" 2>/dev/null) ]] || fail 'layers are left'
}
