# On a host without hardware-assisted paging the package cannot start the stub domain, and starts the daemon, in either
# way; its words are those of the guide.
# nested-xen: --server none --package --xen hap=0 --timeout 300
. /lib/nested.sh
has_no_hap() { xl info | grep '^virt_caps' && ! xl info | grep '^virt_caps' | grep -qw hap; }

step "a Debian host"
debian_host
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb
check "xenstore-stubdom enable" run xenstore-stubdom enable

step "the boot"
check "/etc/init.d/xen start" run /etc/init.d/xen start
reads /run/output.log "xc_domain_create failed" \
    "xenstore-stubdom: the stub domain could not be built with 8 MiB, at most 64; trying again with 8" \
    "xenstore-stubdom: the stub domain could not be built (init-xenstore-domain: status 1); starting /usr/lib/xen-4.17/bin/oxenstored instead"
check "the daemon runs" pidof oxenstored
check "it answers" xenstore-write /test/alive yes
check "virt_caps is without hap" has_no_hap
finish
