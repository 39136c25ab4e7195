# Everything that xl does with domains and tests/nested/guest.sh does not show, the events of the special watches for
# it, and a client that shares no code with libxenstore: pyxs, pure Python.
# nested-xen: --memory 8 --dom0-memory 704 --timeout 700 --pyxs --add "$repository/tests/nested/pyxs-client.py"
. /lib/nested.sh

# events_of NAME: how often the special watch has fired so far.
events_of() { grep -c "^@$1" /run/special; }
more_events() { [ "$(events_of "$1")" -gt "$2" ]; }

# state NAME: the six letters of xl list.
state() { xl list "$1" | awk 'NR == 2 { print $5 }'; }
is_paused() { state "$1" | grep -q p; }

# renamed OLD NEW: the console's log goes on under the name that the domain had when it came.
renamed() { ln -sf "guest-$1.log" "$logs/guest-$2.log"; }

runs() { [ "$(guest_run "$1" "echo it runs")" = "it runs" ]; }

step "the special watches"
xenstore-watch @introduceDomain @releaseDomain >/run/special &
watcher=$!
check "both fire at once" wait_for 20 more_events releaseDomain 0
equal "and once" "1 1" "$(events_of introduceDomain) $(events_of releaseDomain)"
make_guest one 128
check "xl create" start_guest one
domid=$(guest_domid one)
equal "@introduceDomain fired for it, once" 2 "$(events_of introduceDomain)"
make_guest short
check "xl create of another, paused" xl create -q -p /run/guests/short.cfg
equal "@introduceDomain" 3 "$(events_of introduceDomain)"
gone=$(guest_domid short)
released=$(events_of releaseDomain)
check "it is paused before it has run" is_paused short
check "xl destroy" xl destroy short
check "@releaseDomain fires" wait_for 20 more_events releaseDomain "$released"
nothing_left "$gone"
equal "@introduceDomain did not" 3 "$(events_of introduceDomain)"

step "looking"
equal "xl list" "one $domid 128 1" "$(xl list one | awk 'NR == 2 { print $1, $2, $3, $4 }')"
equal "xl list without a name has everybody" "Domain-0 Xenstore one" \
    "$(xl list | awk 'NR > 1 { print $1 }' | grep -v '^(null)' | sort | xargs)"
equal "xl domid" "$domid" "$(xl domid one)"
equal "xl domname" one "$(xl domname "$domid")"
equal "xl vm-list" "$domid one" "$(xl vm-list | awk '$3 == "one" { print $2, $3 }')"
check "xl list -l" xl list -l one
check "xl vcpu-list" xl vcpu-list one

step "xl rename"
check "xl rename" xl rename one two
renamed one two
equal "the guest reads its new name" two "$(guest_run two 'xenstore-read name')"
refuse "nobody has the old one" xl domid one
make_guest three
sed -i "s/^name=.*/name='two'/" /run/guests/three.cfg
refuse "another domain cannot take the name" xl create -q -p /run/guests/three.cfg
equal "and is not there" "Domain-0 Xenstore two" "$(xl list | awk 'NR > 1 { print $1 }' | sort | xargs)"

step "xl pause and unpause"
check "a watch in the guest" guest_run two 'xenstore-watch -n 4 data/w >/tmp/events & sleep 1'
check "xl pause" xl pause two
check "xl list says so" is_paused two
for i in 1 2 3; do xenstore-write "/local/domain/$domid/data/w/$i" x; done
check "dom0 goes on" xenstore-write /x 1
check "xl unpause" xl unpause two
equal "the guest finds the events that came meanwhile" "data/w data/w/1 data/w/2 data/w/3" \
    "$(guest_run two 'for i in $(seq 30); do [ $(wc -l </tmp/events) = 4 ] && break; sleep 1; done; cat /tmp/events' | xargs)"

step "xl console"
mkdir -p /var/lock
xl console two </dev/null >/run/seen &
console=$!
check "a line for the console" guest_run two 'echo for whoever looks'
check "xl console shows it" wait_for 20 grep -q '^for whoever looks' /run/seen
kill $console
if [ -e /usr/bin/python3 ]; then
    # It takes what is typed from a terminal only, and python makes one.
    cat >/run/terminal.py <<'END'
import os, select, sys
child, terminal = os.forkpty()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    try:
        for ready in select.select([0, terminal], [], [])[0]:
            os.write(1 if ready else terminal, os.read(ready, 4096))
    except OSError:
        break
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
END
    mkfifo /run/typed
    python3 -S /run/terminal.py /xen-tools/xl console two </run/typed >/run/seen &
    console=$!
    exec 5<>/run/typed
    check "another line for the console" guest_run two 'echo for the terminal'
    check "xl console runs in a terminal" wait_for 60 grep -q '^for the terminal' /run/seen
    echo "900 $(printf 'xenstore-read domid' | base64)" >&5
    check "what is typed arrives, and the answer comes back" wait_for 60 grep -q '^guest: end 900 0' /run/seen
    equal "it is the guest's" "$domid" "$(tr -d '\r' </run/seen | sed -n '/^guest: begin 900/{n;p}')"
    printf '\035' >&5 # ^]
    check "it ends when told" wait_for 20 no_process $console
    exec 5>&-
else
    skip "typing at xl console (needs python)"
fi
check "the guest does not mind" runs two

step "xl mem-set"
# The driver keeps the distance that the target had at its start to what the guest has.
target_in_guest() { guest_run two 'cat /sys/devices/system/xen_memory/xen_memory0/target_kb'; }
before=$(target_in_guest)
check "xl mem-set" xl mem-set two 116
equal "the target is in the store" $((116 * 1024)) "$(xenstore-read "/local/domain/$domid/memory/target")"
check "the guest's driver hears of it" wait_for 30 eval '[ "$(target_in_guest)" = $((before - 12 * 1024)) ]'
check "and back" xl mem-set two 128

step "xl save -c: the guest goes on afterwards"
check "xl save -c" timeout 120 xl save -c two /run/saved
equal "it is the same domain" "$domid" "$(guest_domid two)"
check "it runs" runs two
check "it writes" guest_run two 'xenstore-write data/after-save 1'
equal "dom0 sees that" 1 "$(xenstore-read "/local/domain/$domid/data/after-save")"
rm -f /run/saved

step "xl migrate, to this very host"
printf '#!/bin/sh\nshift\nexec "$@"\n' >/run/local-ssh
chmod 755 /run/local-ssh
introduced=$(events_of introduceDomain) released=$(events_of releaseDomain)
check "a node of its own before" guest_run two 'xenstore-write data/before 1'
check "xl migrate" timeout 300 xl migrate -s /run/local-ssh two localhost
arrived=$(guest_domid two)
check "it is another domain" [ "$arrived" != "$domid" ]
nothing_left "$domid"
equal "only one has the name" "Domain-0 Xenstore two" "$(xl list | awk 'NR > 1 { print $1 }' | sort | xargs)"
renamed two--incoming two
domid=$arrived
check "the guest goes on" runs two
equal "and reads its new domid" "$domid" "$(guest_run two 'xenstore-read domid')"
check "it writes" guest_run two 'xenstore-write data/x 1'
equal "dom0 sees that" 1 "$(xenstore-read "/local/domain/$domid/data/x")"
equal "@introduceDomain fired for the arrival, once" $((introduced + 1)) "$(events_of introduceDomain)"
check "@releaseDomain for the departure" more_events releaseDomain "$released"

step "xl reboot, shutdown and restore"
ready=$(times_ready two)
check "xl reboot -w" timeout 120 xl reboot -w two
check "it is up again" wait_until_ready two $((ready + 1))
nothing_left "$domid"
check "under another domid" [ "$(guest_domid two)" != "$domid" ]
domid=$(guest_domid two)
check "xl save" timeout 120 xl save two /run/saved
nothing_left "$domid"
check "xl restore -p leaves it paused" timeout 120 xl restore -p /run/saved
rm -f /run/saved
check "it is paused" is_paused two
check "xl unpause" xl unpause two
check "it runs" runs two
domid=$(guest_domid two)
check "xl shutdown -w waits for the end, by @releaseDomain" timeout 120 xl shutdown -w two
check "the domain is gone" wait_gone two
nothing_left "$domid"
check "the watch is still there" kill $watcher
equal "nobody else is left" "" "$(xl list | grep -vE "^(Name|Domain-0|Xenstore) ")"

step "pyxs"
if [ -e /usr/bin/python3 ]; then
    modules=$(dirname "$(find /usr/lib/python3* -name pyxs -type d)")
    timeout 200 env PYTHONPATH="$modules" python3 -S /root/pyxs-client.py >/run/pyxs.log 2>&1
    status=$?
    while read -r word rest; do
        case $word in
        ok) pass "pyxs: $rest" ;;
        done) ended=yes ;;
        FAIL) fail "pyxs: $rest" ;;
        *) echo "        $word $rest" ;;
        esac
    done </run/pyxs.log
    equal "pyxs: the script ends well" "0 yes" "$status ${ended-}"
else
    skip "pyxs (the distribution has none)"
fi
sound
finish
