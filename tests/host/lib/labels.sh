# shellcheck shell=bash disable=SC2016
# What tier 2 tries with security labels: Debian's kernel has AppArmor, the build machine's may not. `expect`,
# `with_settings` and `equals_pid1` are tests/host/vm's.

# Two profiles that permit nearly everything, and the machine's unit in the first of them.
readonly MAKE_LABELS='users=
# Not every parser knows of that.
! apparmor_parser -QK <<<"profile test { userns, }" 2>/dev/null || users=userns,
cat >/root/profiles <<END
profile machinist-test flags=(attach_disconnected,mediate_deleted) {
    file, capability, network, mount, remount, umount, pivot_root, ptrace, signal, unix, $users
    deny /**/forbidden rwklx, deny /forbidden rwklx,
}
profile machinist-other flags=(attach_disconnected,mediate_deleted) {
    file, capability, network, mount, remount, umount, pivot_root, ptrace, signal, unix, $users dbus,
}
END
apparmor_parser --replace --skip-cache /root/profiles
mkdir -p /etc/systemd/system/systemd-nspawn@web.service.d
printf "[Service]\nAppArmorProfile=machinist-test\n" >/etc/systemd/system/systemd-nspawn@web.service.d/label.conf
systemctl daemon-reload; touch /var/lib/machines/web/forbidden
'

test_labels() {
    expect 'exec has the label of PID 1: private users' \
        "$MAKE_LABELS$(with_settings '')$(equals_pid1 '^machinist-test .enforce.')"
    expect 'the same without private users' "$(with_settings 'PrivateUsers=no\n')$(equals_pid1 '^machinist-test .enforce.')"
    expect 'the label holds, with a terminal and for other users, too' '
        denied="Permission denied"
        for options in "" --terminal "--user 65534"; do
            # shellcheck disable=SC2086
            said=$(machinist exec $options web -- cat /proc/self/attr/current /forbidden 2>&1) && exit 1
            # They come by ways of their own.
            [[ $said == *"machinist-test (enforce)"* && $said == *"$denied"* ]] || { echo "$options: $said"; exit 1; }
        done
        machinist exec --detach web -- sh -c "cat /proc/self/attr/current >/told.new && mv /told.new /told"
        for _ in {1..300}; do [[ -e /var/lib/machines/web/told ]] && break; sleep 0.1; done
        [[ $(cat /var/lib/machines/web/told) == "machinist-test (enforce)" ]]'
    expect 'who is kept from the label runs nothing' '
        in_profile() { aa-exec -p "$1" -- machinist exec web -- touch "/run-in-$1" 2>&1; }
        status=0; said=$(in_profile machinist-other) || status=$?; echo "$said"
        [[ $status == 125 && $said == *"label is '\''machinist-test (enforce)'\'', which cannot be taken on"* ]]
        [[ ! -e /var/lib/machines/web/run-in-machinist-other ]]
        in_profile machinist-test && [[ -e /var/lib/machines/web/run-in-machinist-test ]]'
    expect 'who has a label that PID 1 has not runs nothing' '
        rm /etc/systemd/system/systemd-nspawn@web.service.d/label.conf; systemctl daemon-reload; machinist restart web
        status=0; said=$(aa-exec -p machinist-other -- machinist exec web -- true 2>&1) || status=$?; echo "$said"
        [[ $status == 125 && $said == *"label is '\''unconfined'\'', which cannot be taken on"* ]]
        machinist exec web -- grep -x unconfined /proc/self/attr/current
        rm -f /var/lib/machines/web/{forbidden,told,run-in-machinist-test}'
}
