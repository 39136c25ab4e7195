# The xenstore finds and serves guests that were started before it and left their port in their page, like those that Xen
# starts from its boot modules. existing-stream.sh: one of them from a stream.
# nested-xen: --server none --with-xl --timeout 500
. /lib/nested.sh
# No dom0less or hyperlaunch here: the guests are built by xl while xenstore-socket stands in for the xenstore, for
# the domid that the xenstore is going to have, and write themselves what their builder would.
server=ours
stream=${stream-}

# waits NAME: it has written what it has to.
waits() { guest_log "$1" | grep -q 'waits for a xenstore'; }
has_verdict() { guest_log "$1" | grep -q "^verdict: $2"; }

step "two guests and no xenstore"
xenstore-socket 2>/run/stand-in.log &
stand_in=$!
check "a server that knows of no rings" wait_for 10 test -S /run/xenstored/socket
check "xen-init-dom0" xen-init-dom0
xenconsoled --log=all --log-dir=$logs
xenstore-write /tool/xenstored/domid 3
make_test_guest one role=early
make_test_guest two role=early
check "the first guest" timeout 60 xl create -q -e /run/guests/one.cfg
check "waits" wait_for 60 waits one
[ -z "$stream" ] || check "save-store, with the first one only" save-store $stream
check "the second guest" timeout 60 xl create -q -e /run/guests/two.cfg
check "waits" wait_for 60 waits two
equal "their domids" "1 2" "$(guest_domid one) $(guest_domid two)"
kill "$(pidof xenconsoled)"
# Clients take the socket where they find one.
mv /run/xenstored/socket /run/stand-in

step "their xenstore"
set -- init-xenstore-domain --kernel /nested/image --memory 8
[ -z "$stream" ] || set -- "$@" --ramdisk $stream
check "init-xenstore-domain" "$@"
equal "it is the one that they wait for" 3 "$(server_domid)"
if [ -n "$stream" ]; then
    equal "what the stream had is there" one "$(xenstore-read /local/domain/1/name)"
    refuse "and nothing else" xenstore-exists /local/domain/2
fi
check "the toolstack's nodes, about both" xenstore-socket copy /run/stand-in 3
kill $stand_in
xenconsoled --log=all --log-dir=$logs
check "the server's console" wait_for 20 grep -q 'serv' $logs/guest-Xenstore.log
server_console | sed 's/^/        /'

step "both are served"
for guest in 1.one 2.two; do
    domid=${guest%.*} name=${guest#*.}
    check "$name is introduced" is_introduced "$domid"
    check "$name has done its work" wait_for 90 has_verdict "$name"
    check "and found everything right" has_verdict "$name" pass
    equal "dom0 sees what it wrote" "from the test guest" "$(xenstore-read "/local/domain/$domid/data/hello")"
done
if [ -z "$stream" ]; then
    equal "the console names both" 2 "$(server_console | grep -c 'was there before, and is served')"
else
    equal "the console names the one that was in no stream" "domain 2 was there before, and is served" \
        "$(server_console | grep 'was there before')"
fi
sound "the store is sound"

step "their end"
ports=$(server_ports)
for domid in 1 2; do
    check "xl destroy $domid" xl destroy $domid
    check "its connection is gone" wait_for 30 eval "! is_introduced $domid"
done
refuse "nothing is left of the first one" xenstore-exists /local/domain/1
equal "two ports are closed" $((ports - 2)) "$(server_ports)"
finish
