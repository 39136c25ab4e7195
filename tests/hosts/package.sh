# The life of the package on a real Debian host: installed and enabled before Xen ever ran, guests, live update, upgrade, the way
# down and up again. What comes later in it is in leaving.sh.
# debian-host: --plain-first --timeout 3600
. /host/lib.sh

case $boot in
1)
    step "a host on which Xen has been installed, but has not run"
    refuse "Xen does not run" test -e /proc/xen/capabilities
    check "dpkg -i" run dpkg -i /host/xenstore-stubdom.deb
    check "status" run xenstore-stubdom status
    check "nothing is chosen by that" said "next boot: the daemon"
    check "enable" run xenstore-stubdom enable
    check "status" run xenstore-stubdom status
    check "it names the stub domain" said "next boot: the stub domain, by init-xenstore-domain"
    check "enable --with-xl works, too" run xenstore-stubdom enable --with-xl
    check "and back" run xenstore-stubdom enable --without-xl
    check "the folder for consoles is there" test -d /var/log/xen/console
    echo 'XENCONSOLED_ARGS="--log=all"' >>/etc/default/xen
    sound "without Xen"
    reboot_host
    ;;
2)
    step "the first boot of Xen"
    run journalctl -b --no-pager -o short-monotonic -u xen.service
    stub_domain "first boot"
    sound "first boot"
    step "a PVH guest"
    guest_life first
    step "the guard"
    guard_helps "guard"
    step "live update"
    make_guest stays
    check "xl create" start_guest stays
    check "xenstore-stubdom-live-update" run xenstore-stubdom-live-update
    equal "the guest goes on" stays "$(guest_run stays 'xenstore-read name')"
    stub_domain "after a live update"
    step "an upgrade of the package"
    dpkg-deb -R /host/xenstore-stubdom.deb /root/newer
    sed -i 's/^Version: .*/&+newer/' /root/newer/DEBIAN/control
    check "a newer package" dpkg-deb -b /root/newer /root/newer.deb
    before=$(guard_pid)
    check "dpkg -i" run dpkg -i /root/newer.deb
    check "it names the next step" said "xenstore-stubdom-live-update"
    check "live update" run xenstore-stubdom-live-update
    equal "the guest goes on" stays "$(guest_run stays 'xenstore-read name')"
    stub_domain "after the upgrade"
    check "the guard runs" guard_runs
    refuse "it is the new one" [ "$(guard_pid)" = "$before" ]
    check "it helps the new image, too" revived 3
    equal "the guest goes on" stays "$(guest_run stays 'xenstore-read name')"
    step "systemctl restart xen, as an update of Xen's tools does"
    check "restart" run systemctl restart xen.service
    stub_domain "after a restart"
    equal "the guest goes on" stays "$(guest_run stays 'xenstore-read name')"
    sound "after all that"
    reboot_host
    ;;
3)
    step "the next boot"
    went_down_in 120
    stub_domain "second boot"
    check "the guard has come up, too" guard_runs
    sound "second boot"
    finish
    ;;
esac
