# Each guest takes an event channel of the stub domain. When there is none left, one guest is refused, the console says why,
# all others go on, and there is room again when one of them has ended.
# nested-xen: --server none --with-xl --timeout 500
. /lib/nested.sh
server=ours

make_paused() { make_guest "$1" 16 "kernel='/guest/test-guest'" "ramdisk=''"; }
asks_for_all() { xl create -q --dryrun /etc/xen/xenstore-stubdom.cfg | grep -q '"event_channels": 4095'; }
create() { timeout 60 xl create -q -p -e "/run/guests/$1.cfg"; }

step "a domain with twelve event channels"
check "start-with-xl" start-with-xl /etc/xen/xenstore-stubdom.cfg "kernel='/nested/image'" max_event_channels=12
check "xen-init-dom0" xen-init-dom0
# xl passes over a key that it does not know, and says nothing.
check "the package asks xl for all" asks_for_all
check "xenconsoled" xenconsoled --log=all --log-dir=$logs

step "guests, until there is none left"
n=0
while [ $n -lt 16 ]; do
    make_paused "g$((n + 1))"
    create "g$((n + 1))" >/run/create.log 2>&1 || break
    n=$((n + 1))
done
check "some came, and not all" [ "$n" -ge 4 -a "$n" -lt 16 ]
echo "        $n guests"
check "the console says why" wait_for 20 grep -q "no event channel is left for domain" $logs/guest-Xenstore.log
# Looking whether a domain is still there takes no channel, and is no news.
equal "once" 1 "$(grep -c "no event channel is left" $logs/guest-Xenstore.log)"
grep "no event channel\|cannot be bound" $logs/guest-Xenstore.log | sed 's/^/        /'
check "dom0 goes on" xenstore-write /test/alive yes
for i in $(seq $n); do equal "g$i is still connected" 0 "$(is_introduced "$(guest_domid "g$i")"; echo $?)"; done
sound "the store is sound"

step "room again"
check "xl destroy" xl destroy g1
make_paused "g$((n + 1))"
check "one more guest comes" wait_for 60 create "g$((n + 1))"
domid=$(guest_domid "g$((n + 1))")
check "it is connected" is_introduced "${domid:-none}"
finish
