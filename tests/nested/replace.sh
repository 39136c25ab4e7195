# Another domain takes the place of the store's, while dom0 and guests use it: what is open stays open, and whatever
# is wrong is found before anything is destroyed.
# nested-xen: --memory 8 --param --test-failures --crashes --timeout 900
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "a domain that is replaced (not with $server)"
    finish
}

[ -x /usr/bin/xenstore-guard ] || { fail "there is no /usr/bin/xenstore-guard: cargo guard builds it" && finish; }

replacements() { server_console | grep -c '^took over '; }
# A panic is one that was asked for.
no_panic() { [ -s $logs/guest-Xenstore.log ] && ! server_console | grep -qiE '^(panic|fatal)'; }

replace() { xenstore-guard replace --image /nested/image "$@" >/run/replace.log 2>&1; }

no_rehearsal() { [ ! -e /run/xen/xenstore-rehearsal ]; }

shown() { sed 's/^/        /' /run/replace.log | cut -c 1-250; }

told_why() { xenstore-control replace 4 | grep 'nobody in dom0 waits'; }

# replaced WHAT: the server is as it was, and serves guests, too.
replaced() {
    as_before "$1"
    check "$1: the Linux guest writes" guest_run linux 'xenstore-write data/x 1 && xenstore-read data/x'
}

# readers: reads all the time, until it is killed, and says each time how long that took, in hundredths of a second.
readers() {
    while :; do
        begun=$(hundredths)
        xenstore-read /test/value >/dev/null 2>&1
        echo $(($(hundredths) - begun))
    done
}
hundredths() { cut -d ' ' -f 1 /proc/uptime | tr -d .; }

# message TYPE TX PAYLOAD: a message to the store, on descriptor 4.
message() {
    printf %b "$3" >/run/payload
    length=$(wc -c </run/payload)
    {
        printf %b "$(printf '\\0%o\\0\\0\\0\\001\\0\\0\\0\\0%o\\0\\0\\0\\0%o\\0\\0\\0' "$1" "$2" "$length")"
        cat /run/payload
    } >/run/message
    cat /run/message >&4
    dd bs=4096 count=1 <&4 2>/dev/null | tail -c +17 | tr -d '\0'
}

start_guard
scene dying
dying=$(guest_domid dying)
# A transaction of dom0 that is open all the time.
exec 4<>/dev/xen/xenbus
xenstore-write /transaction/node before
tx=$(message 6 0 '\0')
equal "a transaction: written in" OK "$(message 11 "$tx" '/transaction/node\0after')"
sleep 1
tree >/run/tree.before

step "nothing happens"
head -c 500000 /nested/image >/run/half
xenstore-control quota >/run/not-an-image
took=$(replacements)
refuse "too little memory" replace --memory 3
shown
refuse "more than Xen has" replace --memory 60000
shown
refuse "half an image" replace --image /run/half
shown
refuse "no image" replace --image /run/not-an-image
shown
refuse "a file that is not there" replace --image /run/nothing
check "only a rehearsal" replace --rehearse
shown
check "a program in dom0 has to wait for the state" told_why
equal "no domain has taken over" "$took" "$(replacements)"
equal "no other domain is left" "" "$(xl list | grep null)"
replaced "after all of that"

step "replaced"
check "xenstore-stubdom replace" replace
shown
replaced "replaced"
equal "one domain has taken over" $((took + 1)) "$(replacements)"
server_console | tail -n 3 | sed 's/^/        /'
xenstore-write /test/watched 1
check "the watch is still there" wait_for 20 no_process $watcher
equal "the transaction sees what it wrote" after "$(message 2 "$tx" '/transaction/node\0')"
equal "and nobody else does" before "$(xenstore-read /transaction/node)"
equal "and commits" OK "$(message 7 "$tx" 'T\0')"
equal "so everybody sees it" after "$(xenstore-read /transaction/node)"
xenstore-write /transaction/node before
xenstore-rm /test/watched
exec 4>&-

step "with other limits"
check "twice the memory" replace --memory 16 --maxmem 24
shown
replaced "larger"
equal "MiB" 16 "$(server_memory)"
equal "and the store says so" "16384 24576" \
    "$(xenstore-read "/local/domain/$store/memory/target") $(xenstore-read "/local/domain/$store/memory/static-max")"
ports=$(server_ports)
check "again" replace
shown
replaced "again"
equal "no port is lost" "$ports" "$(server_ports)"

stop_steady steady-a

step "a large store"
for n in $(seq 0 99); do
    xenstore-write $(seq 200 | sed "s|.*|/large/$n/& value|")
done
equal "nodes" 20000 "$(xenstore-ls -f /large | grep -c value)"
readers >/run/reads &
reader=$!
sleep 3
check "replaced" replace
shown
kill $reader
echo "        longest wait of a reader: $(sort -n /run/reads | tail -n 1)0 ms; usual: $(sort -n /run/reads | sed -n 2p)0 ms, most of it the program's start"
equal "nodes" 20000 "$(xenstore-ls -f /large | grep -c value)"
check "xenstore-rm" xenstore-rm /large
replaced "a large store"

step "its program dies"
refuse "in the rehearsal" replace --end-behind rehearsing
check "the guard clears that away" wait_for 40 no_rehearsal
equal "no other domain is left" "" "$(xl list | grep null)"
replaced "rehearsal killed"
refuse "with the state taken" replace --end-behind taken
check "the guard sees it" wait_for 20 grep -q 'broken off: it goes on' /run/guard.log
replaced "broken off"
refuse "with the old domain destroyed" replace --end-behind destroyed
check "the guard goes on with it" wait_for 30 grep -q 'broken off is over now' /run/guard.log
pidof xenconsoled >/dev/null || xenconsoled --log=all --log-dir=$logs
replaced "gone on with"
kill $guard
refuse "in the rehearsal, without a guard" replace --rehearse --end-behind rehearsing
refuse "with the new one built" replace --end-behind built
refuse "it does not begin anew" replace
shown
check "a guest crashes meanwhile" xen-hvmcrash "$dying"
check "replace --again" replace --again
shown
pidof xenconsoled >/dev/null || xenconsoled --log=all --log-dir=$logs
check "the dead guest is taken away" wait_gone dying
refuse "its nodes are gone" xenstore-exists "/local/domain/$dying"
tree >/run/tree.before
replaced "by hand"
refuse "there is nothing to go on with" replace --again

step "afterwards"
check "a live update works" xenstore-control live-update /nested/image
replaced "updated"
start_guard
xenstore-control fail triple-fault >/run/fail.log 2>&1 &
check "the next failure is revived" wait_for 30 eval 'tail -n 1 /run/guard.log | grep -q "serves again"'
replaced "revived"
check "and it can be replaced" replace
shown
replaced "replaced after a failure"
sed 's/^/        /' /run/guard.log | cut -c 1-200
finish
