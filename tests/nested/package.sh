# The Debian package, installed by dpkg, makes the stub domain the host's xenstore by Debian's own start script,
# goes back to the daemon, and can be updated and removed without harm to the running store. package-xl.sh
# runs the same with xl in place of init-xenstore-domain.
# nested-xen: --server none --package --timeout 600
. /lib/nested.sh
with=${with:-init-xenstore-domain}
server=ours

processes() { ps -o comm | grep -cE '^o?xenstored$'; }
domains() { xl list | grep -c '^Xenstore '; }
serves() { xenstore-write /test/alive "$1" && [ "$(xenstore-read /test/alive)" = "$1" ]; }

# still_serving WHEN: the one store there was, and no other.
still_serving() {
    check "$1: the store answers" serves "$1"
    equal "$1: it is the same domain, alone" "1 0" "$(domains) $(processes)"
}

# What an update of Xen's tools does, by their maintainer scripts.
update_of_xen_utils() {
    run /etc/init.d/xen stop && run /etc/init.d/xen start
}

step "a Debian host"
debian_host
cp /etc/default/xen /run/default.xen

step "dpkg -i"
check "dpkg installs the package" run /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb
equal "dpkg has it as installed" "install ok installed" \
    "$(sed -n '/^Package: xenstore-stubdom$/,/^$/s/^Status: //p' /var/lib/dpkg/status)"
equal "nothing is chosen by that" "" "$(diff /etc/default/xen /run/default.xen)"
check "xenstore-stubdom status" run xenstore-stubdom status
check "it names the daemon for the next boot" said "next boot: the daemon"
check "and nothing now" said "now:       no xenstore"
refuse "xenstore-stubdom without arguments is refused" run xenstore-stubdom

step "enable"
refuse "an unknown option is refused" run xenstore-stubdom enable --with-xm
if [ $with = xl ]; then
    check "xenstore-stubdom enable --with-xl" run xenstore-stubdom enable --with-xl
else
    check "enable --with-xl" run xenstore-stubdom enable --with-xl
    check "is undone by enable --without-xl" run xenstore-stubdom enable --without-xl
fi
check "twice is once" run xenstore-stubdom enable
check "it says who will build it" said "built by $with"
equal "one line of the choice is ours" 1 "$(grep -c ^XENSTORED=/usr/lib/xenstore-stubdom/xenstored /etc/default/xen)"
check "status" run xenstore-stubdom status
check "it names the stub domain for the next boot" said "next boot: the stub domain, by ${by:-init-xenstore-domain}"

step "the next boot: /etc/init.d/xen start"
sed -i 's/^OPTIONS=.*/OPTIONS="-E 1234"/; s/^MAXMEM=.*/MAXMEM=32/' /etc/default/xenstore-stubdom
sed -i 's/^cmdline = .*/cmdline = "-E 1234 --quota=watches=77 --verbose"/; s/^maxmem = .*/maxmem = 32/' /etc/xen/xenstore-stubdom.cfg
sed -i 's/^XENSTORED_ARGS=.*/XENSTORED_ARGS="--quota=watches=77 --verbose"/' /etc/default/xen
# Nothing works without it.
run /etc/init.d/xen start || { fail "/etc/init.d/xen start" && finish; }
pass "/etc/init.d/xen start"
equal "xl list shows the domain" "Xenstore 1 8" "$(xl list | awk '$1 == "Xenstore" { print $1, $2, $3 }')"
cp /run/output.log /run/boot.log
equal "no daemon runs" 0 "$(processes)"
# From Xen 4.20 on init-xenstore-domain leaves one behind; whoever waited for the end of its output would wait for ever. A pipe
# with both its ends is libxenstore's.
equal "none that a tool has left holds a pipe of ours" "" \
    "$(for process in $(pidof xen-9pfsd); do ls -l "/proc/$process/fd" | grep -o 'pipe:.*' | sort | uniq -u; done)"
# Debian's xendomains goes by this list.
equal "nobody saves or stops it with the guests" "Domain-0" "$(xl list -l 2>/dev/null | sed -n 's/.*"name": "\(.*\)".*/\1/p')"
if [ $with = xl ]; then
    refuse "what stood in for the xenstore is gone" pidof xenstore-socket
    check "options that have no effect with xl are named" \
        grep -q "not used: -E 1234 --quota=watches=77 --verbose" /run/boot.log
fi
check "xenconsoled runs" pidof xenconsoled
equal "dom0 has its name (xen-init-dom0)" Domain-0 "$(xenstore-read /local/domain/0/name)"
equal "it may grow to MAXMEM" $((32 * 1024)) "$(xenstore-read /local/domain/1/memory/static-max)"
xenstore-control quota >/run/quota
equal "options reach it" 1234 "$(awk '$1 == "nodes" { print $3 }' /run/quota)"
equal "and more of them" 77 "$(awk '$1 == "watches" { print $3 }' /run/quota)"
check "a daemon's option is named on the console" wait_for 20 grep -q -- "--verbose has no effect here" $logs/guest-Xenstore.log
check "status" run xenstore-stubdom status
check "it names the domain and what it runs" said "now:       domain 1, [xenstore-stubdom "
check "and that nobody watches over it" said "guard:     none"
# A unit of systemd does this.
xenstore-stubdom guard 2>/run/guard.log &
check "the guard has found the domain" wait_for 20 grep -q "^watching domain 1, the xenstore" /run/guard.log
check "status" run xenstore-stubdom status
check "it names the guard" said "guard:     process "

step "the tools"
check "xenstore-write, -read" serves first
make_guest linux
check "xl create" start_guest linux
equal "the guest reads its name" linux "$(guest_run linux 'xenstore-read name')"
check "it writes" guest_run linux 'xenstore-write data/mine 1 && xenstore-read data/mine'
domid=$(guest_domid linux)
check "xl reboot" xl reboot linux
check "it comes again" wait_until_ready linux 2
nothing_left "$domid"
domid=$(guest_domid linux)
equal "it reads its name" linux "$(guest_run linux 'xenstore-read name')"
check "xl destroy" xl destroy linux
check "it is gone" wait_gone linux
check "so is its connection" wait_for 30 eval "! is_introduced $domid"
nothing_left "$domid"

step "an update of Xen's tools"
check "/etc/init.d/xen stop, start" update_of_xen_utils
check "the start says that there is a store" said "xenstore-stubdom: domain 1 is this host's xenstore already"
still_serving "after an update of Xen's tools"
check "xenconsoled runs again" wait_for 10 pidof xenconsoled

step "live update"
check "xl create" start_guest linux
run xenstore-stubdom-live-update
equal "xenstore-stubdom-live-update" 0 $?
check "the wrapper shows what runs" said "running: [xenstore-stubdom "
check "and what is new" said "new:     [xenstore-stubdom "
check "and what runs then" said "now:     [xenstore-stubdom "
check "the console tells of it" wait_for 20 grep -q '^took over ' $logs/guest-Xenstore.log
equal "the guest goes on" linux "$(guest_run linux 'xenstore-read name')"
still_serving "after a live update"
refuse "what is no image of ours is refused" run xenstore-stubdom-live-update /bin/busybox
check "it says so" said "/bin/busybox is no image of xenstore-stubdom"

step "an update of the package"
check "dpkg -i again" run /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb
check "it names the next step" said "xenstore-stubdom-live-update"
equal "the settings are kept" 1 "$(grep -c '^OPTIONS="-E 1234"' /etc/default/xenstore-stubdom)"
equal "those for xl, too" 1 "$(grep -c '^maxmem = 32' /etc/xen/xenstore-stubdom.cfg)"
equal "the choice is kept" 1 "$(grep -c ^XENSTORED=/usr/lib/xenstore-stubdom/xenstored /etc/default/xen)"
still_serving "after an update of the package"

step "disable"
check "xenstore-stubdom disable" run xenstore-stubdom disable
check "status" run xenstore-stubdom status
check "it names the daemon for the next boot" said "next boot: the daemon"
check "and the domain now" said "now:       domain 1, "
check "an update of Xen's tools meanwhile" update_of_xen_utils
still_serving "disabled, after an update of Xen's tools"
equal "and the guest goes on" linux "$(guest_run linux 'xenstore-read name')"

step "dpkg -r"
check "enabled again" run xenstore-stubdom enable
check "dpkg -r" run /usr/bin/dpkg --force-bad-path -r xenstore-stubdom
refuse "the programs are gone" test -e /usr/sbin/xenstore-stubdom
refuse "the choice names nothing that is gone" grep -q /usr/lib/xenstore-stubdom /etc/default/xen
still_serving "after the removal"
check "an update of Xen's tools meanwhile" update_of_xen_utils
still_serving "removed, after an update of Xen's tools"
check "dpkg -P" run /usr/bin/dpkg --force-bad-path -P xenstore-stubdom
refuse "the settings are gone" test -e /etc/default/xenstore-stubdom -o -e /etc/xen/xenstore-stubdom.cfg
domid=$(guest_domid linux)
check "the guest shuts down" xl shutdown -w linux
check "it is gone" wait_gone linux
check "so is its connection" wait_for 30 eval "! is_introduced $domid"
nothing_left "$domid"

finish
