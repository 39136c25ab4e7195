# The troubles with the running stub domain in docs/administration.md: each is provoked, and reads as that page says.
# nested-xen: --server none --package --dom0-memory 640 --timeout 900
. /lib/nested.sh
server=ours

console=$logs/guest-Xenstore.log
on_console() { wait_for 20 grep -qE "$1" $console; }

step "a host whose xenstore is the stub domain"
debian_host
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb
sed -i 's/^OPTIONS=.*/OPTIONS="-E 60 --evnt -Q noods=3 -E"/; s/^MAXMEM=.*/MAXMEM=/' /etc/default/xenstore-stubdom
check "enable" xenstore-stubdom enable
run /etc/init.d/xen start || { fail "/etc/init.d/xen start" && finish; }
check "status" run xenstore-stubdom status
reads /run/output.log "next boot: the stub domain, by init-xenstore-domain" "now:       domain 1, [xenstore-stubdom 0.1.0]" \
    "installed: [xenstore-stubdom 0.1.0] /usr/lib/xenstore-stubdom/xenstore-stubdom"

step "an option has no effect"
check "the console is logged" on_console "serving"
reads $console "command line: option --evnt is unknown, ignored" \
    "command line: option -Q: value noods=3 is not valid, ignored" "command line: option -E lacks its value, ignored"

step "it is started twice"
run init-xenstore-domain --kernel /usr/lib/xenstore-stubdom/xenstore-stubdom --memory 8
reads /run/output.log "xenstore domain already present."

step "a guest's devices stopped"
make_test_guest bad role=bad-index
check "xl create" timeout 120 xl create -q -e /run/guests/bad.cfg
check "it breaks its ring" on_console "connection given up"
reads $console "domain 2: connection given up: its ring indices are impossible"
xenstore-control stats >/run/stats
grep ignored /run/stats
equal "stats shows that as ignored" 1 "$(grep -c ignored /run/stats)"
check "xl destroy" xl destroy bad

step "a guest cannot write"
for switch in on +acc -io; do xenstore-control log $switch; done
make_guest linux
check "xl create" start_guest linux
run guest_run linux 'for i in $(seq 100); do xenstore-write data/x$i 1 || exit; done'
reads /run/output.log "xenstore-write: could not write path data/x48"
check "the console has the refusal" on_console "ENOSPC"
reads $console "domain 3: Write refused: ENOSPC"
xenstore-control quota "$(guest_domid linux)" >/run/quota
equal "its nodes are at the limit" 60 "$(awk '$1 == "nodes" { print $3 }' /run/quota)"
cat /run/quota
check "xl destroy" xl destroy linux

step "out of memory"
value=$(head -c 3900 /dev/zero | tr '\0' x)
n=0 status=0
while [ $status = 0 ] && [ $n -lt 4000 ]; do
    set --
    for i in $(seq $n $((n + 15))); do set -- "$@" "/fill/$i" "$value"; done
    timeout 60 xenstore-write "$@" 2>/run/error || status=$?
    n=$((n + 16))
done
cut -c 1-200 /run/error
check "the console has the refusal" on_console "ENOMEM"
reads $console "domain 0: Write refused: ENOMEM"
xenstore-control memreport >/run/memory
reads /run/memory "heap: used 6808032 bytes, size 7688192, limit 7688192"
run xenstore-stubdom-live-update
equal "there is no room for a live update" 1 $?
reads /run/output.log "there is not enough memory for an image of 755448 bytes: 1000000 are free; give the domain a larger maxmem"
run save-store /run/saved
equal "nor for save-store" 1 $?
reads /run/output.log "there is not enough memory for a dump of 2000 bytes: 1000 are free; give the domain a larger maxmem"
check "xenstore-rm" xenstore-rm /fill
check "save-store has room then" save-store /run/saved
run xenstore-stubdom-live-update
equal "and so has a live update" 0 $?

step "what is refused"
run xenstore-stubdom-live-update /bin/busybox
reads /run/output.log "xenstore-stubdom: /bin/busybox is no image of xenstore-stubdom"
xenstore-control dump begin
run save-store /run/second
reads /run/output.log "save-store: dump 2 is being fetched; try again when it has ended, or in 10 s if nobody fetches it"
check "xenstore-write" xenstore-write /test/alive yes

step "xl create waits, then fails"
kill "$(pidof xenconsoled)"
refuse "xl create" run xl create -q -e /run/guests/linux.cfg
reads /run/output.log "console_xswait_callback: domain 5 console tty: timed out"
check "/etc/init.d/xen start" run /etc/init.d/xen start
reads /run/output.log "xenstore-stubdom: domain 1 is this host's xenstore already"
check "xl create" start_guest linux

step "xl destroy of the xenstore"
equal "it never returns" 143 "$(timeout 20 xl destroy Xenstore >/dev/null 2>&1; echo $?)"
equal "nor does any client" 143 "$(timeout 20 xenstore-read /test/alive >/dev/null 2>&1; echo $?)"
finish
