# Another domain takes the place of the store's, while dom0 and guests use it: what is open stays open, and whatever
# is wrong is found before anything is destroyed.
# nested-xen: --memory 8 --param --test-failures --crashes --timeout 900
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "a domain that is replaced (not with $server)"
    finish
}

[ -x /usr/bin/xenstore-guard ] || { fail "there is no /usr/bin/xenstore-guard: cargo guard builds it" && finish; }

# What is the domain's own changes with it.
tree() { xenstore-ls -fp / | grep -v "^/local/domain/[1-9][0-9]*/data\|^/local/domain/$store/\(console\|memory\)/\|/tty = "; }
replacements() { server_console | grep -c '^took over '; }
answers() { [ "$(timeout 5 xenstore-read /test/value)" = here ]; }

# A panic is one that was asked for.
no_panic() { [ -s $logs/guest-Xenstore.log ] && ! server_console | grep -qiE '^(panic|fatal)'; }

replace() { xenstore-guard replace --image /nested/image "$@" >/run/replace.log 2>&1; }

shown() { sed 's/^/        /' /run/replace.log | cut -c 1-250; }

told_why() { xenstore-control replace 4 | grep 'nobody in dom0 waits'; }

start_guard() {
    xenstore-guard "$@" 2>>/run/guard.log &
    guard=$!
}

same_tree() { diff /run/tree.before /run/tree.after; }

# as_before WHAT: the server answers, and is as it was.
as_before() {
    check "$1: the store answers" wait_for 20 answers
    equal "$1: of the same domid" $store "$(server_domid)"
    tree >/run/tree.after
    check "$1: the same tree" same_tree
    sound "$1: check"
    check "$1: the Linux guest writes" guest_run linux 'xenstore-write data/x 1 && xenstore-read data/x'
}

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

store=$(server_domid)
xenstore-write /test/value here /test/deep/er/still there /transaction/node before
xenstore-chmod /test/deep r0 b5 n7
start_guard
start_steady steady-a
make_guest linux
check "a Linux guest" start_guest linux
make_guest dying
check "and another one" start_guest dying
dying=$(guest_domid dying)
xenstore-watch -n 2 /test/watched >/run/watch.log 2>&1 &
watcher=$!
# A transaction of dom0 that is open all the time.
exec 4<>/dev/xen/xenbus
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
as_before "after all of that"

step "replaced"
check "xenstore-stubdom replace" replace
shown
as_before "replaced"
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
as_before "larger"
equal "MiB" 16 "$(server_memory)"
equal "and the store says so" "16384 24576" \
    "$(xenstore-read "/local/domain/$store/memory/target") $(xenstore-read "/local/domain/$store/memory/static-max")"
ports=$(server_ports)
check "again" replace
shown
as_before "again"
equal "no port is lost" "$ports" "$(server_ports)"

stop_steady steady-a

step "its program dies"
refuse "with the state taken" replace --end-behind taken
check "the guard sees it" wait_for 20 grep -q 'broken off: it goes on' /run/guard.log
as_before "broken off"
refuse "with the old domain destroyed" replace --end-behind destroyed
check "the guard goes on with it" wait_for 30 grep -q 'broken off is over now' /run/guard.log
pidof xenconsoled >/dev/null || xenconsoled --log=all --log-dir=$logs
as_before "gone on with"
kill $guard
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
as_before "by hand"
refuse "there is nothing to go on with" replace --again

step "afterwards"
check "a live update works" xenstore-control live-update /nested/image
as_before "updated"
start_guard
xenstore-control fail triple-fault >/run/fail.log 2>&1 &
check "the next failure is revived" wait_for 30 eval 'tail -n 1 /run/guard.log | grep -q "serves again"'
as_before "revived"
check "and it can be replaced" replace
shown
as_before "replaced after a failure"
sed 's/^/        /' /run/guard.log | cut -c 1-200
finish
