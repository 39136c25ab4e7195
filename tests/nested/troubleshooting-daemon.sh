# The troubles in docs/administration.md on a host with a daemon, or before there is a xenstore: each is provoked,
# and reads as it says.
# nested-xen: --server none --package --timeout 500
. /lib/nested.sh
image=/usr/lib/xenstore-stubdom/xenstore-stubdom

step "a Debian host"
debian_host
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb

step "init-xenstore-domain with another file"
run init-xenstore-domain --kernel /guest/initramfs --memory 8
reads /run/output.log "xc_dom_find_loader: no loader found: Invalid kernel"

step "the daemon does not start after going back"
sed -i 's/^XENSTORED_ARGS=.*/XENSTORED_ARGS="--quota=watches=77"/' /etc/default/xen
run timeout 120 /etc/init.d/xen start
reads /run/output.log "/usr/lib/xen-4.17/bin/oxenstored: unknown option '--quota=watches=77'." \
    "No suitable xenstored binary found to start."
sed -i 's/^XENSTORED_ARGS=.*/XENSTORED_ARGS=/' /etc/default/xen
check "without that it starts" run /etc/init.d/xen start
check "it answers" xenstore-write /test/alive yes

step "a live update of a daemon"
refuse "xenstore-stubdom-live-update" run xenstore-stubdom-live-update
reads /run/output.log "xenstore-stubdom: the xenstore of this host is no domain"

run save-store /run/saved
equal "save-store" 1 $?
reads /run/output.log "save-store: this xenstore cannot write its state down"

step "a stub domain beside the daemon"
run init-xenstore-domain --kernel $image --memory 8
reads /run/output.log "Xenbus setup ioctl failed"
run /usr/lib/xenstore-stubdom/start-with-xl
reads /run/output.log "start-with-xl: a xenstore serves at /run/xenstored/socket already"

step "the image as an ordinary guest"
check "xl create" timeout 60 xl create -q -e /etc/xen/xenstore-stubdom.cfg
check "its console" wait_for 20 grep -q serving $logs/guest-Xenstore.log
server_console | sed 's/^/        /'
reads $logs/guest-Xenstore.log \
    "xen: no right to ask for the state of domains (get_domain_state failed with error 13, getdomaininfo of version 0x15 with error 1): was this domain built as a xenstore domain?" \
    "no option --event, and no port in the ring page: domain 0 is not served until it is introduced"
check "xl destroy" xl destroy Xenstore

step "after the daemon"
kill "$(pidof oxenstored)"
check "it is gone" wait_for 20 eval "! pidof oxenstored"
rm -f /run/xenstored/socket
run /usr/lib/xenstore-stubdom/start-with-xl
reads /run/output.log "xenstore-socket: dom0's kernel has talked to a xenstore already" \
    "start-with-xl: this takes a reboot of dom0"
finish
