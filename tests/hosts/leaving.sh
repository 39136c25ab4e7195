# The way to the stub domain from a daemon that serves, and back, on a real Debian host: built by xl, disabled, removed, purged.
# debian-host: --timeout 3600
. /host/lib.sh

case $boot in
1)
    step "the daemon, as Debian has it"
    daemon_serves "before"
    check "dpkg -i" run dpkg -i /host/xenstore-stubdom.deb
    check "enable --with-xl" run xenstore-stubdom enable --with-xl
    echo 'XENCONSOLED_ARGS="--log=all"' >>/etc/default/xen
    daemon_serves "enabled, until the reboot"
    reboot_host
    ;;
2)
    step "built by xl"
    went_down_in 60
    run journalctl -b --no-pager -o short-monotonic -u xen.service
    stub_domain "built by xl" "xl create /etc/xen/xenstore-stubdom.cfg"
    sound "built by xl"
    guest_life first
    step "the guard, with a store that xl has built"
    guard_helps "xl"
    check "live update" run xenstore-stubdom-live-update
    step "disable"
    check "disable" run xenstore-stubdom disable
    check "restart of xen.service" systemctl restart xen.service
    check "the store answers" xenstore-write /test/alive disabled
    equal "no daemon came" 0 "$(pgrep -xc 'o?xenstored')"
    reboot_host
    ;;
3)
    step "disabled"
    went_down_in 60
    daemon_serves "disabled"
    refuse "no guard has come" guard_runs
    sound "disabled"
    guest_life second
    step "removal while the daemon runs, enabled"
    check "enable" run xenstore-stubdom enable
    check "dpkg -r" run dpkg -r xenstore-stubdom
    daemon_serves "removed"
    reboot_host
    ;;
4)
    step "removed"
    went_down_in 60
    daemon_serves "after the removal"
    sound "after the removal"
    check "dpkg --purge" run dpkg --purge xenstore-stubdom
    equal "nothing of it is left" "" "$(find /etc /usr /run /var/lib/dpkg/info -name '*xenstore-stubdom*')"
    finish
    ;;
esac
