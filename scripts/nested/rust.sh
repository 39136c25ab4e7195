# Makes sure of a Rust that can build this package, on the host and for the bare target. Sourced after
# setup.sh. A Rust that is there is used as it is; only what is missing is added, and said.

target=x86_64-unknown-none
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
[ ! -d "$HOME/.cargo/bin" ] || PATH=$HOME/.cargo/bin:$PATH

# recent_enough VERSION: not older than what Cargo.toml asks for.
recent_enough() { [ -n "$1" ] && [ "$(printf '%s\n' "$wanted" "$1" | sort -V | head -n 1)" = "$wanted" ]; }

cargo_version() { cargo --version 2>/dev/null | awk '{ print $2 }'; }

# Distributions package Rust for the host only, so the bare target takes rustup; newer ones package that.
need_cargo() {
    recent_enough "$(cargo_version)" && return
    local found
    found=$(cargo_version)
    say "Rust $wanted or newer is needed; found: ${found:-none}"
    if ! command -v rustup >/dev/null && apt-cache show rustup >/dev/null 2>&1; then
        need_host_packages rustup=rustup
    fi
    command -v rustup >/dev/null || setup_failed "please install Rust with this line, then start again:
    curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
    say "installing the stable toolchain with rustup"
    quietly rustup toolchain install stable --profile minimal
    quietly rustup default stable
    recent_enough "$(cargo_version)" || setup_failed "cargo $(cargo_version) still comes first in PATH; $wanted or newer is needed"
}

# need_rustup_part WHAT COMMAND...: adds a part of the toolchain, or says that it cannot.
need_rustup_part() {
    local what=$1
    shift
    command -v rustup >/dev/null || setup_failed "$what is missing and there is no rustup to add it; see https://rustup.rs"
    say "adding to the Rust toolchain: $what"
    quietly rustup "$@"
}

setup_rust() {
    mkdir -p "$nested"
    # The linker, which building for the host takes.
    need_host_packages cc="gcc libc6-dev"
    need_cargo
    [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || need_rustup_part "the target $target" target add "$target"
    cargo fmt --version >/dev/null 2>&1 || need_rustup_part rustfmt component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || need_rustup_part clippy component add clippy
    say "Rust $(cargo_version) with the target $target is there"
}
