# Two hundred live updates in a row under load: all succeed, and neither heap nor ports nor memory drift.
# nested-xen: --memory 8 --timeout 900
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "live update of a stub domain (not with $server)"
    finish
}
rounds=200

make_guest steady 16 "kernel='/guest/test-guest'" "ramdisk=''" "cmdline='role=steady'" "on_poweroff='preserve'"
check "a test guest at work" xl create -q /run/guests/steady.cfg
for n in $(seq 300); do echo "/many/$((n % 17))/$n value-$n"; done | xargs -n 60 xenstore-write
updates() { server_console | grep -c 'took over [0-9]'; }

# What must not drift. The guest beside it has a transaction open or not: with one the table of transactions is there, three pages
# and up to 3000 bytes. If anybody has had one since the update, the table keeps a page, so dom0 has one before each look (a write
# of two nodes is one). The heap is the least of twenty looks, after as many updates.
figures() { echo "$(server_ports) $(server_memory)"; }
look() {
    xenstore-write /looked/at "$n" /looked/again "$n"
    server_heap
}
least() { if [ -z "$1" ] || [ "$2" -lt "$1" ]; then echo "$2"; else echo "$1"; fi; }

step "$rounds updates"
failures=0 heap_first='' heap_last='' looks_first='' looks_last=''
for n in $(seq $rounds); do
    xenstore-control live-update /nested/image >/run/update.log 2>&1 || {
        failures=$((failures + 1))
        echo "        update $n: $(cat /run/update.log)"
        [ $failures -lt 3 ] || break
    }
    if [ "$n" -gt 5 ] && [ "$n" -le 25 ]; then
        heap=$(look)
        looks_first="$looks_first $heap"
        heap_first=$(least "$heap_first" "$heap")
    fi
    if [ "$n" -gt $((rounds - 20)) ]; then
        heap=$(look)
        looks_last="$looks_last $heap"
        heap_last=$(least "$heap_last" "$heap")
    fi
    [ "$n" != 10 ] || first=$(figures)
    [ $((n % 50)) != 0 ] || echo "        after $n: $(server_heap) $(figures)"
done
equal "failures" 0 $failures
equal "updates" $rounds "$(updates)"
set -- $first $(figures)
echo "        looks after 6 to 25 updates:$looks_first"
echo "        looks at the end:$looks_last"
check "heap in use: $heap_first bytes after 25 updates, $heap_last at the end" [ $((heap_last - heap_first)) -le 3000 ]
equal "ports" "$1" "$3"
equal "memory" "$2" "$4"
sound "check"
equal "every node is there" 300 "$(xenstore-ls -f /many | grep -c value)"

step "the guest"
check "it is told to stop" xenstore-write "/local/domain/$(guest_domid steady)/data/stop" 1
wait_for 60 eval "guest_log steady | grep -q '^verdict: '"
guest_log steady | grep '^verdict: ' | sed 's/^/        /'
equal "it noticed nothing" "verdict: pass" "$(guest_log steady | grep -o '^verdict: [a-z]*')"
server_console | grep 'took over' | tail -n 1 | sed 's/^/        /'
finish
