# shellcheck shell=bash disable=SC2016
# What tier 2 tries with machines for another processor: to register an emulator with the build machine's kernel is not
# for tests. `expect` is tests/host/vm's.

# A tree for arm64, as an archive and as an image of a container. systemd-binfmt is masked: nothing is registered.
readonly MAKE_FOREIGN='machinist create fo template:busybox --network host
cp /usr/lib/machinist-test/busybox-arm64 /var/lib/machines/fo/usr/bin/busybox
tar -C /var/lib/machines/fo -cf /root/foreign.tar .
umoci init --layout /root/images; umoci new --image /root/images:app; umoci unpack --image /root/images:app /root/bundle
cp -a /var/lib/machines/fo/. /root/bundle/rootfs; umoci repack --image /root/images:app /root/bundle; rm -r /root/bundle
umoci config --image /root/images:app --os linux --architecture arm64 --config.cmd /bin/sleep --config.cmd 1000
machinist remove --yes fo
'

test_processors() {
    expect 'for another processor: what is missing is told, with the packages that have it' "$MAKE_FOREIGN"'
        packages="package qemu-user-static (Debian 12) or qemu-user-binfmt (Debian 13 and later)"
        tells() {
            local wanted=$1 status=0 said; shift
            said=$("$@" 2>&1) || status=$?
            [[ $status == "$wanted" && $said == *"$packages"* ]] || { echo "$*: status $status: $said"; exit 1; }
        }
        tells 0 machinist create fo /root/foreign.tar --network host
        tells 0 machinist create app oci:/root/images:app --arch arm64 --network host
        tells 1 machinist start fo
        tells 1 machinist why fo
        # Its PID 1 is of systemd-nspawn, and has run, or runs yet.
        machinist start app || :; for _ in {1..300}; do ! systemctl is-failed --quiet systemd-nspawn@app || break; sleep 0.1; done
        tells 1 machinist why app
        tells 125 machinist run fo -- uname -m
        tells 125 machinist run /root/foreign.tar -- uname -m
        tells 125 machinist run /root/foreign.tar
        tells 1 machinist create deb debian:trixie --arch arm64 --dry-run'
    expect 'with its emulator it is started, entered and stopped' '
        /usr/lib/systemd/systemd-binfmt qemu-aarch64.conf; grep -x "flags:.*F.*" /proc/sys/fs/binfmt_misc/qemu-aarch64
        systemctl reset-failed systemd-nspawn@{fo,app}.service
        machinist why fo --json | jq -e "all(.[0].troubles[]; .code != \"init-wrong-format\")"
        machinist start fo app
        for name in fo app; do [[ $(machinectl show "$name" -p State --value) == running ]]; done
        [[ $(machinist exec fo -- uname -m) == aarch64 && $(machinist exec -t fo -- uname -m) == aarch64* ]]
        [[ $(systemd-run --quiet --pipe --wait machinist exec --user 65534 fo -- id -u) == 65534 ]]
        status=0; machinist exec fo -- sh -c "exit 7" || status=$?; [[ $status == 7 ]]
        status=0; machinist exec fo -- nosuch || status=$?; [[ $status == 127 ]]
        [[ $(machinist exec app -- cat /proc/2/comm) == sleep ]]
        said=$(machinist create new /root/foreign.tar 2>&1); [[ $said != *qemu* ]] || { echo "$said"; exit 1; }
        machinist stop fo; machinist terminate app; ! machinectl show fo 2>/dev/null
        [[ $(machinist run -x fo -- uname -m) == aarch64 ]]
        machinist create deb debian:trixie --arch arm64 --dry-run | grep -e "--architectures=arm64 --skip=check/qemu"'
    expect 'an emulator that is not in every tree is none' '
        echo -1 >/proc/sys/fs/binfmt_misc/qemu-aarch64
        sed s/:OPF$/:OP/ /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
        said=$(machinist start fo 2>&1) && exit 1; echo "$said"
        said=$(machinist why fo || :); [[ $said == *"qemu-user-binfmt"* ]] || { echo "$said"; exit 1; }
        echo -1 >/proc/sys/fs/binfmt_misc/qemu-aarch64
        machinist remove --yes fo app new; rm -r /root/foreign.tar /root/images'
}
