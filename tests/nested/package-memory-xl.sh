# As package-memory.sh, with the stub domain built by xl.
# nested-xen: --server none --package --add "$repository/tests/nested/package-memory.sh:/nested/package-memory.sh" --timeout 400
with=xl
. /nested/package-memory.sh
