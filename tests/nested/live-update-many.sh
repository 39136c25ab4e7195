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

# What must not drift; the guest beside it has a transaction open or not, which is up to 3000 bytes.
figures() { echo "$(server_heap) $(server_ports) $(server_memory)"; }

step "$rounds updates"
failures=0
for n in $(seq $rounds); do
    xenstore-control live-update /nested/image >/run/update.log 2>&1 || {
        failures=$((failures + 1))
        echo "        update $n: $(cat /run/update.log)"
        [ $failures -lt 3 ] || break
    }
    [ "$n" != 10 ] || first=$(figures)
    [ $((n % 50)) != 0 ] || echo "        after $n: $(figures)"
done
equal "failures" 0 $failures
equal "updates" $rounds "$(updates)"
set -- $first $(figures)
check "heap in use: $1 bytes after 10 updates, $4 at the end" [ $(($4 - $1)) -le 3000 ]
equal "ports" "$2" "$5"
equal "memory" "$3" "$6"
check "check" xenstore-control check
equal "every node is there" 300 "$(xenstore-ls -f /many | grep -c value)"

step "the guest"
check "it is told to stop" xenstore-write "/local/domain/$(guest_domid steady)/data/stop" 1
wait_for 60 eval "guest_log steady | grep -q '^verdict: '"
guest_log steady | grep '^verdict: ' | sed 's/^/        /'
equal "it noticed nothing" "verdict: pass" "$(guest_log steady | grep -o '^verdict: [a-z]*')"
server_console | grep 'took over' | tail -n 1 | sed 's/^/        /'
finish
