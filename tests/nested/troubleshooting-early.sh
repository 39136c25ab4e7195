# A client that is there before the xenstore spoils dom0 for a stub domain, and the package's start sees that and
# starts the daemon, which answers that client, too; init-xenstore-domain would hang, as docs/administration.md says.
# nested-xen: --server none --package --timeout 300
. /lib/nested.sh

step "a Debian host with an impatient client"
debian_host
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb
check "enable" run xenstore-stubdom enable
xenstore-read / >/run/impatient 2>&1 &
client=$!
sleep 5
check "the client waits" kill -0 $client

step "the start"
check "/etc/init.d/xen start" run timeout 120 /etc/init.d/xen start
reads /run/output.log "xenstore-socket: dom0's kernel has talked to a xenstore already" \
    "xenstore-stubdom: this takes a reboot, and no client before the xenstore; starting /usr/lib/xen-4.17/bin/oxenstored instead"
check "the daemon answers" xenstore-write /test/alive yes
check "and so it did to the client" wait_for 20 no_process $client
finish
