#!/usr/bin/env bash
# What Kube-OVN runs in the pods of a VpcEgressGateway, with the environment that it gives its init container:
# INTERNAL_GATEWAY_IPV4/6, EXTERNAL_GATEWAY_IPV4/6, NO_SNAT_SOURCES_IPV4/6, ENABLE_BGP, ENABLE_EVPN.
# docs/kubernetes.md says what is missing in an init container. VPC_GATEWAY_STAY=true: does not end.
set -euo pipefail

name=${VPC_GATEWAY_NAME:-pod}
state=${VPC_GATEWAY_STATE_DIR:-/run/vpc-gateway}

fail() {
    echo "init-vpc-egress-gateway: $*" >&2
    exit 1
}

# The interface that leads to a gateway.
toward() {
    local found
    found=$(ip -o route get "$1" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p')
    [ -n "$found" ] || fail "no route leads to $1"
    echo "$found"
}

# The first global address of an interface, family 4 or 6, with its length.
address() {
    ip -o "-$2" address show dev "$1" scope global | sed -n 's/.* inet6\{0,1\} \([^ ]*\).*/\1/p' | head -n 1
}

[ "${ENABLE_EVPN:-}" != true ] || fail "EVPN is not supported: use Kube-OVN's image for this gateway"

sysctl -qw net.ipv4.ip_forward=1
[ ! -e /proc/sys/net/ipv6 ] || sysctl -qw net.ipv6.conf.all.forwarding=1

internal='' external='' cidrs_in='' cidrs_out='' routers='' snat='' pass=''
for family in 4 6; do
    inside=INTERNAL_GATEWAY_IPV$family outside=EXTERNAL_GATEWAY_IPV$family sources=NO_SNAT_SOURCES_IPV$family
    inside=${!inside:-} outside=${!outside:-} sources=${!sources:-}
    [ -n "$inside" ] && [ -n "$outside" ] || continue
    in=$(toward "$inside") out=$(toward "$outside")
    [ "${internal:-$in}" = "$in" ] && [ "${external:-$out}" = "$out" ] ||
        fail "IPv$family is on $in and $out, IPv4 on $internal and $external"
    internal=$in external=$out
    own_in=$(address "$in" "$family") own_out=$(address "$out" "$family")
    [ -n "$own_in" ] && [ -n "$own_out" ] || fail "no IPv$family address on $in or on $out"

    # What comes from outside goes back inside by the internal gateway, policies' sources or not.
    ip "-$family" route replace default via "$inside" dev "$in" table 1000
    for rule in "1001 iif $in lookup default" "1002 iif $out lookup 1000" \
        "1003 iif lo from ${own_in%/*} lookup 1000" "1004 iif lo from ${own_out%/*} lookup default"; do
        ip "-$family" rule del priority "${rule%% *}" 2>/dev/null || true
        # shellcheck disable=SC2086
        ip "-$family" rule add priority $rule
    done

    # The environment does not tell whom to translate: everybody who is not excepted.
    any=0.0.0.0/0
    [ "$family" = 4 ] || any=::/0
    cidrs_in+=${cidrs_in:+,}$own_in cidrs_out+=${cidrs_out:+,}$own_out routers+=${routers:+,}$outside
    snat+=${snat:+, }\"$any\"
    IFS=, read -ra list <<<"$sources"
    for source in "${list[@]}"; do
        pass+=${pass:+, }\"$source\"
    done
done
[ -n "$internal" ] || fail "neither IPv4 nor IPv6 has both an internal and an external gateway"
sysctl -qw "net.ipv4.conf.$internal.rp_filter=0"
if [ "${ENABLE_BGP:-}" = true ]; then
    # FRR routes, and nothing is translated.
    exit 0
fi

policies="{snat: true, ipBlocks: [$snat]}"
if [ -n "$pass" ]; then
    policies+=", {snat: false, ipBlocks: [$pass]}"
fi
mkdir -p "$state/$name"
cat >"$state/$name.yaml" <<END
apiVersion: kubeovn.io/v1
kind: Vpc
metadata: {name: pod}
spec: {}
---
apiVersion: kubeovn.io/v1
kind: Subnet
metadata: {name: external}
spec: {cidrBlock: "$cidrs_out", gateway: "$routers"}
---
apiVersion: kubeovn.io/v1
kind: Subnet
metadata: {name: internal}
spec: {vpc: pod, cidrBlock: "$cidrs_in"}
---
apiVersion: kubeovn.io/v1
kind: VpcEgressGateway
metadata: {name: $name}
spec: {vpc: pod, internalSubnet: internal, externalSubnet: external, policies: [$policies]}
END

# shellcheck disable=SC2206
options=(${VPC_GATEWAY_OPTIONS:-})
run=(vpc-gateway run --gateway "$name" --state-dir "$state" --config "$state/$name.yaml"
    --internal "$internal" --external "$external" "${options[@]}")
if [ "${VPC_GATEWAY_STAY:-}" = true ]; then
    exec "${run[@]}"
fi
setsid "${run[@]}" </dev/null >>"$state/$name/daemon.log" 2>&1 &
for _ in $(seq 300); do
    if vpc-gateway status --gateway "$name" --state-dir "$state" >/dev/null 2>&1; then
        exit 0
    fi
    if ! kill -0 $! 2>/dev/null; then
        fail "the daemon ended: $(tail -n 3 "$state/$name/daemon.log" | tr '\n' ' ')"
    fi
    sleep 0.1
done
fail "the daemon is not ready after 30 s; see $state/$name/daemon.log"
