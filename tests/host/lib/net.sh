# shellcheck shell=bash
# The network of one tier 1 host: a namespace, a veth pair whose inner end is `host0`, a /30, an nft table. Every
# name comes from the host's id; NET_STATE/ID holds the subnet for as long as it is in use on this machine.

netns_name() { printf 'machinist-%s\n' "$1"; }
veth_name() { printf 'mh-%s\n' "${1##*-}"; }
table_name() { printf 'machinist_%s\n' "${1##*-}"; }

# The resolvers that the host can reach too: not those on a loopback address.
resolvers() {
    if [[ -n ${MACHINIST_TEST_DNS:-} ]]; then
        printf '%s\n' "$MACHINIST_TEST_DNS"
        return
    fi
    local file
    for file in /etc/resolv.conf /run/systemd/resolve/resolv.conf; do
        [[ -r $file ]] || continue
        awk '$1 == "nameserver" && $2 !~ /^(127\.|::1$|fe80:)/ {printf "%s ", $2; n++} END {exit !n}' "$file" && return
    done
    cannot 'no resolver that is not on a loopback address; set MACHINIST_TEST_DNS'
}

# An interrupted net_up is cleaned up by net_down in the same process, which then has the lock already.
net_lock=''
with_net_lock() {
    mkdir -p "$NET_STATE"
    if [[ -z $net_lock ]]; then
        exec {net_lock}>"$NET_STATE/.lock"
        flock "$net_lock"
    fi
    "$@"
    exec {net_lock}>&-
    net_lock=''
}

# Markers without a namespace are from before a reboot, or from a run that was killed on the way.
drop_stale_markers() {
    local marker
    for marker in "$NET_STATE"/*-??????; do
        [[ -e $marker ]] || continue
        [[ -e /run/netns/$(netns_name "${marker##*/}") ]] || rm -f "$marker"
    done
}

# A /30 within 10.213.0.0/16 that no route and no other host uses. Prints the first three octets and the base.
free_subnet() {
    local try a b
    for ((try = 0; try < 200; try++)); do
        a=$((RANDOM % 256)) b=$((RANDOM % 64 * 4))
        grep -qsx "10.213.$a $b" "$NET_STATE"/*-?????? && continue
        ip -4 route show root 10.213.0.0/16 | grep -qF "10.213.$a." && continue
        printf '10.213.%s %s\n' "$a" "$b"
        return
    done
    cannot 'no free subnet in 10.213.0.0/16'
}

uplink_mtu() {
    local device
    device=$(ip -4 route show default | awk '{for (i = 1; i < NF; i++) if ($i == "dev") {print $(i + 1); exit}}')
    cat "/sys/class/net/${device:-lo}/mtu" 2>/dev/null || echo 1500
}

# net_up ID ROOT: makes the network and writes the configuration of its inner end into ROOT.
net_up() { with_net_lock net_up_locked "$@"; }

net_up_locked() {
    local id=$1 root=$2 subnet net base ns veth mtu
    drop_stale_markers
    subnet=$(free_subnet)
    net=${subnet% *} base=${subnet#* }
    ns=$(netns_name "$id") veth=$(veth_name "$id") mtu=$(uplink_mtu)
    ((mtu <= 1500)) || mtu=1500

    ip netns add "$ns"
    # A new namespace takes over the machine's switch; a freshly installed host does not forward.
    ip netns exec "$ns" sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'
    printf '%s\n' "$subnet" >"$NET_STATE/$id"
    ip link add "$veth" mtu "$mtu" type veth peer name host0 mtu "$mtu" netns "$ns"
    ip addr add "$net.$((base + 1))/30" dev "$veth"
    ip link set "$veth" up
    forwarding_on
    nft_rules "$id" "$net.$base/30" | nft -f -
    host0_config "$net.$((base + 1))" "$net.$((base + 2))/30" >"$root/etc/systemd/network/10-host0.network"
}

nft_rules() {
    local veth
    veth=$(veth_name "$1")
    # The guests' interfaces have an MTU of 1500 whatever the way out has: clamp, as no ICMP may come back.
    cat <<NFT
table ip $(table_name "$1") {
    chain postrouting { type nat hook postrouting priority 100; ip saddr $2 oifname != "$veth" masquerade; }
    chain forward {
        type filter hook forward priority -150;
        iifname "$veth" tcp flags syn tcp option maxseg size set rt mtu
        oifname "$veth" tcp flags syn tcp option maxseg size set rt mtu
    }
}
NFT
}

host0_config() {
    local resolver
    printf '[Match]\nName=host0\n\n[Network]\nAddress=%s\nGateway=%s\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n' "$2" "$1"
    for resolver in $(resolvers); do
        printf 'DNS=%s\n' "$resolver"
    done
}

# The first host that needs forwarding keeps the former value, the last one restores it.
forwarding_on() {
    local switch=/proc/sys/net/ipv4/ip_forward
    [[ $(<"$switch") == 1 ]] && return
    echo 0 >"$NET_STATE/.ip_forward"
    echo 1 >"$switch"
}

forwarding_restore() {
    local other
    for other in "$NET_STATE"/*-??????; do
        [[ ! -e $other ]] || return 0
    done
    [[ -e $NET_STATE/.ip_forward ]] || return 0
    cat "$NET_STATE/.ip_forward" >/proc/sys/net/ipv4/ip_forward
    rm -f "$NET_STATE/.ip_forward"
}

# net_down ID: may be called at any time, and again.
net_down() { with_net_lock net_down_locked "$@"; }

net_down_locked() {
    local id=$1
    nft delete table ip "$(table_name "$id")" 2>/dev/null || true
    # Removing one end removes both; a namespace that is still held by somebody must not keep it.
    ip link delete "$(veth_name "$id")" 2>/dev/null || true
    ip netns delete "$(netns_name "$id")" 2>/dev/null || true
    rm -f "$NET_STATE/$id"
    drop_stale_markers
    forwarding_restore
}
