# As existing.sh, with one of the two guests in the stream that the xenstore starts from; its port is in its page, too.
# nested-xen: --server none --with-xl --add "$repository/tests/nested/existing.sh:/nested/existing.sh" --timeout 500
stream=/run/saved.stream
. /nested/existing.sh
