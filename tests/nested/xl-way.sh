# The stub domain started by xl alone (scripts/start-with-xl): a Linux guest lives and dies, a domid comes again, and
# deaths are noticed although Xen answers this domain no questions; what its configuration says holds; it grows, and
# is replaced live.
# nested-xen: --with-xl --memory 8 --maxmem 64 --dom0-memory 640 --timeout 900
. /lib/nested.sh

# permissions PATH: those of a node, in letters.
permissions() {
    xenstore-ls -p "${1%/*}" | awk -v name="${1##*/}" '$0 ~ "^" name " =" { print $NF }'
}

step "the start"
xenstore=$(server_domid)
equal "/tool/xenstored/domid is the domain's" "$(xl domid Xenstore)" "$xenstore"
refuse "the server that stood in is gone" pidof xenstore-socket
refuse "and so is its socket" test -e /run/xenstored/socket
equal "what it had was copied" Xenstore "$(xenstore-read "/local/domain/$xenstore/name")"
equal "with permissions" "(n0,r$xenstore)" "$(permissions "/local/domain/$xenstore")"
check "what the toolstack keeps, too" xenstore-exists "/libxl/$xenstore"
check "xenconsoled logs its console" wait_for 20 grep -q . $logs/guest-Xenstore.log
check "the console says what this domain may not ask" grep -q "no right to ask" $logs/guest-Xenstore.log
sound "the store is sound"
refuse "a second start is refused" start-with-xl
equal "the file that names the domain is there" "domid:$xenstore" "$(cat /run/xen/xenstored.pid)"

step "what the configuration says"
equal "xl list shows the domain, with its memory" "Xenstore $xenstore 8" \
    "$(xl list | awk '$1 == "Xenstore" { print $1, $2, $3 }')"
equal "it may grow to maxmem" $((64 * 1024)) "$(xenstore-read "/local/domain/$xenstore/memory/static-max")"
check "and knows that" grep -q "memory 8192 of 6[5-6][0-9]* KiB" $logs/guest-Xenstore.log
xl list -l >/run/list
for event in on_poweroff on_reboot on_crash; do
    check "$event is preserve" grep -q "\"$event\": \"preserve\"" /run/list
done
equal "no xl waits for its end, to act on it" "" "$(pidof xl)"
mkdir -p /var/lock # for xl console
xl console Xenstore </dev/null >/run/console &
console=$!
sleep 2
xenstore-control print "a line for xl console"
check "xl console shows what it says" wait_for 20 grep -q "a line for xl console" /run/console
kill $console
# That takes a minute; what comes of it is looked at in the end.
xl shutdown Xenstore >/run/shutdown 2>&1 &
shutdown=$!

# nothing_left DOMID: no node and no connection of a domain that is gone.
nothing_left() {
    check "domain $1: its connection is gone" wait_for 30 is_forgotten "$1"
    refuse "domain $1: /local/domain/$1 is gone" xenstore-exists "/local/domain/$1"
}
is_forgotten() { ! is_introduced "$1"; }

# How many events of @releaseDomain have come.
xenstore-watch @releaseDomain >/run/releases &
wait_for 20 grep -q . /run/releases
releases() { grep -c . /run/releases; }
has_fired() { wait_for 30 more_releases "$1"; }
more_releases() { [ "$(releases)" -gt "$1" ]; }
has_crashed() { xl list "$1" | awk 'NR == 2 { exit $5 !~ /c/ }'; }
ports_are() { [ "$(server_ports)" = "$1" ]; }

ports=$(server_ports)

step "a Linux guest"
make_guest linux
check "xl create" start_guest linux
domid=$(guest_domid linux)
equal "reads its name" linux "$(guest_run linux 'xenstore-read name')"
check "writes below its data" guest_run linux 'xenstore-write data/greeting hello'
equal "dom0 sees that" hello "$(xenstore-read "/local/domain/$domid/data/greeting")"
refuse "may not write to dom0's nodes" guest_run linux 'xenstore-write /local/domain/0/data/x 1'

step "xl shutdown"
before=$(releases)
check "xl shutdown" xl shutdown linux
check "the domain is gone" wait_gone linux
check "@releaseDomain has fired" has_fired "$before"
nothing_left "$domid"

step "a domid that comes again"
check "xl create" start_guest linux
domid=$(guest_domid linux)
xenstore-write /shared x
check "it has rights outside its home" xenstore-chmod /shared n0 "b$domid"
check "and uses them" guest_run linux 'xenstore-write /shared mine'
before=$(releases)
check "xl save -D" timeout 120 xl save -D linux /run/saved
check "the domain is gone" wait_gone linux
check "@releaseDomain has fired" has_fired "$before"
nothing_left "$domid"
# libxl counts in whole seconds: without a pause a timeout of 0 is not over yet.
sleep 2
check "xl restore" env LIBXL_DOMID_REUSE_TIMEOUT=0 timeout 120 xl restore /run/saved
rm -f /run/saved
equal "it has the same domid" "$domid" "$(guest_domid linux)"
equal "and goes on" linux "$(guest_run linux 'xenstore-read name')"
refuse "its predecessor's rights are not its own" guest_run linux 'xenstore-write /shared again'
equal "what that wrote is unchanged" mine "$(xenstore-read /shared)"

step "xl destroy"
check "a node of the guest's own" guest_run linux 'xenstore-write data/own 1'
before=$(releases)
check "xl destroy" xl destroy linux
check "the domain is gone" wait_gone linux
check "@releaseDomain has fired" has_fired "$before"
nothing_left "$domid"

step "a crash"
check "xl create" start_guest linux
domid=$(guest_domid linux)
before=$(releases)
guest_run linux 'echo c >/proc/sysrq-trigger' >/dev/null 2>&1 &
check "@releaseDomain has fired" has_fired "$before"
check "the toolstack cleans up" wait_gone linux
nothing_left "$domid"

step "a crash that is kept"
# Nothing but the crash happens now, and nobody tells the server which domain it was.
make_guest kept 96 "on_crash='preserve'"
check "xl create" start_guest kept
domid=$(guest_domid kept)
before=$(releases)
guest_run kept 'echo c >/proc/sysrq-trigger' >/dev/null 2>&1 &
check "@releaseDomain has fired" has_fired "$before"
check "xl list shows it as crashed" wait_for 20 has_crashed kept
check "it is still known" is_introduced "$domid"
before=$(releases)
check "xl destroy" xl destroy kept
check "@releaseDomain has fired" has_fired "$before"
nothing_left "$domid"

step "a guest whose connection was given up"
make_test_guest bad role=bad-index
check "xl create" timeout 120 xl create -q -e /run/guests/bad.cfg
domid=$(guest_domid bad)
check "it breaks its ring" wait_for 60 grep -q "connection given up" $logs/guest-Xenstore.log
check "it is still known" is_introduced "$domid"
check "xl destroy" xl destroy bad
check "the domain is gone" wait_gone bad
nothing_left "$domid"

step "live update"
check "xl create" start_guest linux
domid=$(guest_domid linux)
check "a node of the guest's own" guest_run linux 'xenstore-write data/before 1'
check "xenstore-control live-update" xenstore-control live-update /nested/image
check "the console tells of it" wait_for 20 grep -q '^took over ' $logs/guest-Xenstore.log
equal "dom0 finds what there was" 1 "$(xenstore-read "/local/domain/$domid/data/before")"
equal "the guest goes on" linux "$(guest_run linux 'xenstore-read name')"
check "xl reboot" xl reboot linux
check "it comes again" wait_until_ready linux $(($(times_ready linux) + 1))
nothing_left "$domid"
domid=$(guest_domid linux)
equal "it reads its name" linux "$(guest_run linux 'xenstore-read name')"
before=$(releases)
guest_run linux 'echo c >/proc/sysrq-trigger' >/dev/null 2>&1 &
check "a crash: @releaseDomain has fired" has_fired "$before"
check "the toolstack cleans up" wait_gone linux
nothing_left "$domid"

step "growth"
value=$(head -c 3900 /dev/zero | tr '\0' x)
n=0
while [ $n -lt 3000 ]; do
    set --
    for i in $(seq $n $((n + 19))); do set -- "$@" "/full/$i" "$value"; done
    timeout 60 xenstore-write "$@" || break
    n=$((n + 20))
done
equal "3000 values of 3900 bytes have room" 3000 $n
equal "the first one is right" "$value" "$(xenstore-read /full/0)"
equal "and so is the last one" "$value" "$(xenstore-read /full/2999)"
memory=$(server_memory)
check "the domain has grown ($memory MiB)" test "$memory" -gt 12
check "a live update of the grown domain" xenstore-control live-update /nested/image
equal "the last one is still right" "$value" "$(xenstore-read /full/2999)"
check "xenstore-rm" xenstore-rm /full

step "xl shutdown of the xenstore"
check "xl gives up" wait_for 60 no_process $shutdown
cat /run/shutdown
check "since the domain does as if it had not heard" grep -q "guest didn't acknowledge control request" /run/shutdown
equal "and goes on" "Xenstore $xenstore" "$(xl list | awk '$1 == "Xenstore" && $5 !~ /[psc]/ { print $1, $2 }')"

step "afterwards"
sound "the store is sound"
# The port of the last guest was only muted, and is closed with the next news.
make_test_guest last role=remote
check "one more guest comes" timeout 120 xl create -q -e /run/guests/last.cfg
check "and goes" xl destroy last
check "no port is left" wait_for 30 ports_are "$ports"
finish
