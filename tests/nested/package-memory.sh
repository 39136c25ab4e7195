# With the Debian package enabled and more memory asked for than there is, the stub domain starts with less.
# package-memory-xl.sh: the same, built by xl.
# nested-xen: --server none --package --timeout 300
. /lib/nested.sh
server=ours
with=${with:-init-xenstore-domain}

step "a Debian host"
debian_host
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb

step "too much memory"
if [ $with = xl ]; then
    check "enable" xenstore-stubdom enable --with-xl
    sed -i 's/^memory = .*/memory = 8000/; s/^maxmem = .*/maxmem = 9000/' /etc/xen/xenstore-stubdom.cfg
else
    check "enable" xenstore-stubdom enable
    echo 'MEMORY=8000 MAXMEM=9000' >>/etc/default/xenstore-stubdom
fi
run timeout 120 /etc/init.d/xen start
equal "/etc/init.d/xen start" 0 $?
if [ $with = xl ]; then
    check "it says that it tries again" \
        said "the stub domain could not be built as /etc/xen/xenstore-stubdom.cfg says; trying again with 8 MiB"
else
    check "it says that there is not enough" said "could not be built with 8000 MiB, at most 9000; trying again with 8"
    reads /run/output.log "can't allocate low memory for domain: Out of memory"
fi
# The first try was domain 1, where it came that far.
equal "a domain of 8 MiB serves" "Xenstore 8" "$(xl list | awk '$1 == "Xenstore" { print $1, $3 }')"
check "it answers" xenstore-write /test/alive yes
make_guest linux
check "xl create" start_guest linux
equal "the guest reads its name" linux "$(guest_run linux 'xenstore-read name')"
finish
