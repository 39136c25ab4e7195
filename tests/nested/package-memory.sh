# With the Debian package enabled and more memory asked for than there is, the stub domain starts with less.
# nested-xen: --server none --package --timeout 300
. /lib/nested.sh

step "a Debian host"
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers /etc/default /etc/xen
touch /var/lib/dpkg/status /var/lib/dpkg/available
cp /usr/share/xen-utils-common/default.xen /etc/default/xen
echo 'XENCONSOLED_ARGS="--log=all"' >>/etc/default/xen
ln -sf /usr/bin/dash /bin/sh
export PATH="/usr/sbin:/sbin:$PATH"
check "dpkg -i" /usr/bin/dpkg --force-bad-path -i /root/xenstore-stubdom.deb
check "enable" xenstore-stubdom enable

step "too much memory"
echo 'MEMORY=8000 MAXMEM=9000' >>/etc/default/xenstore-stubdom
timeout 120 /etc/init.d/xen start >/run/output.log 2>&1
equal "/etc/init.d/xen start" 0 $?
cat /run/output.log
check "it says that there is not enough" grep -q "could not be built with 8000 MiB, at most 9000; trying again with 8" /run/output.log
# The first try was domain 1.
equal "a domain of 8 MiB serves" "Xenstore 2 8" "$(xl list | awk '$1 == "Xenstore" { print $1, $2, $3 }')"
check "it answers" xenstore-write /test/alive yes
make_guest linux
check "xl create" start_guest linux
equal "the guest reads its name" linux "$(guest_run linux 'xenstore-read name')"
check "no panic" no_panic

finish
