# All that package.sh shows, with the stub domain built by xl: `xenstore-stubdom enable --with-xl`.
# nested-xen: --server none --package --add "$repository/tests/nested/package.sh:/nested/package.sh" --dom0-memory 640 --timeout 900
with=xl by='xl create /etc/xen/xenstore-stubdom.cfg'
. /nested/package.sh
