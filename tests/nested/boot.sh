# The stock toolstack starts the xenstore in 8 MiB, the stock clients do their job through it, Xen's own
# test of a xenstore passes, and a server that nobody asks anything uses no processor time.
# nested-xen: --memory 8 --timeout 400
. /lib/nested.sh

step "the domain"
if ours "init-xenstore-domain starts a domain"; then
    # It has succeeded, or this script would not run at all.
    domid=$(server_domid)
    equal "xl list shows the domain" "Xenstore $domid 8" \
        "$(xl list | awk '$1 == "Xenstore" { print $1, $2, $3 }')"
    equal "/tool/xenstored/domid is the xenstore domain's" "$(xl domid Xenstore)" "$domid"
    equal "its name is in the store" Xenstore "$(xenstore-read "/local/domain/$domid/name")"
    check "xenconsoled logs its console" wait_for 20 grep -q . $logs/guest-Xenstore.log
fi

step "one tool after the other"
check "xenstore-write creates a node and its parents" xenstore-write /test/a/b/c value
equal "xenstore-read gives the value" value "$(xenstore-read /test/a/b/c)"
equal "an implied parent is empty" "" "$(xenstore-read /test/a)"
check "xenstore-write replaces a value" xenstore-write /test/a/b/c other
equal "xenstore-read gives the new one" other "$(xenstore-read /test/a/b/c)"
check "xenstore-exists finds a node" xenstore-exists /test/a/b
refuse "xenstore-exists misses an absent one" xenstore-exists /test/absent
refuse "xenstore-read of an absent node fails" xenstore-read /test/absent
check "xenstore-write takes several nodes at once" xenstore-write /test/l/one 1 /test/l/two 2 /test/l/three 3
equal "xenstore-list names the children in creation order" "one two three" "$(xenstore-list /test/l | xargs)"
equal "xenstore-ls shows a tree" 'one = "1" two = "2" three = "3"' "$(xenstore-ls /test/l | xargs -0 | xargs -I{} echo {} | tr -s ' \n' ' ' | sed 's/ $//')"
equal "xenstore-ls -f shows whole paths" '/test/l/two = "2"' "$(xenstore-ls -f /test | grep two)"
check "xenstore-chmod sets permissions" xenstore-chmod /test/l n0 r7 b9
equal "xenstore-ls -p shows them" "(n0,r7,b9)" "$(xenstore-ls -p /test | awk '$1 == "l" { print $NF }')"
refuse "xenstore-chmod of an absent node fails" xenstore-chmod /test/absent n0
check "xenstore-rm removes a tree" xenstore-rm /test/a
refuse "nothing is left of it" xenstore-exists /test/a/b/c
refuse "xenstore-rm / is refused" xenstore-rm /
refuse "an invalid path is refused" xenstore-write '/test/a b' x

step "a watch"
xenstore-watch -n 3 /test/watched >/run/events &
watcher=$!
check "xenstore-watch gets the initial event" wait_for 20 grep -q /test/watched /run/events
xenstore-write /test/watched/below 1
xenstore-write /test/beside 1
xenstore-rm /test/watched
check "it ends after three events" wait_for 20 no_process $watcher
# One at once, one for the write, and one for the removal (nodes below it have events only for watches right there).
equal "they are those of the watched tree" "/test/watched /test/watched /test/watched/below" \
    "$(sort /run/events | xargs)"
xenstore-rm /test

step "Xen's own test: test-xenstore"
nodes=$(node_count)
timeout 120 test-xenstore -i 20 >/run/test.log 2>&1
status=$?
cat /run/test.log
equal "test-xenstore -i 20 passes" 0 $status
refuse "none of its tests failed" grep -qiE 'fail|error' /run/test.log
timeout 60 test-xenstore -r 10 >/run/test.log 2>&1
equal "test-xenstore -r 10 ends clean" 0 $?
equal "it left nothing behind" "$nodes" "$(node_count)"

step "CONTROL"
sound
check "xenstore-control help" xenstore-control help
check "xenstore-control quota 0" is_introduced 0
refuse "xenstore-control quota of an unknown domain is refused" is_introduced 77
if ours "xenstore-control print writes to the console"; then
    check "xenstore-control print is accepted" xenstore-control print "a line for the console"
    check "it is on the console" wait_for 10 grep -q "a line for the console" $logs/guest-Xenstore.log
fi

step "nothing to do"
if ours "an idle stub domain uses no processor time for 20 s"; then
    # xl itself asks for names, which may just fill a tenth of a second: so there is a second try.
    before=$(server_cpu_seconds)
    sleep 20
    after=$(server_cpu_seconds)
    if [ "$before" != "$after" ]; then
        before=$(server_cpu_seconds)
        sleep 20
        after=$(server_cpu_seconds)
    fi
    equal "an idle stub domain uses no processor time for 20 s" "$before" "$after"
fi

finish
