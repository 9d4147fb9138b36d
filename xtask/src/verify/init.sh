#!/bin/busybox sh
# The first process of the virtual machine: sets up a VPC, a gateway and an outside, runs the
# gateway, runs the packet cases, and writes what there is to see to the second serial port, in sections that begin
# with "@@ NAME". The first serial port is the console.

/bin/busybox --install -s /bin
export PATH=/sbin:/bin NO_COLOR=1
# Busybox runs its own commands first, and its `ip` knows no namespaces.
ip() { /sbin/ip "$@"; }

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
ln -s /run /var/run
stty -F /dev/ttyS1 -opost
exec >/dev/ttyS1 2>&1

section() { echo "@@ $1"; }

section kernel
uname -r

section setup
for module in /modules/*.ko; do insmod "$module"; done
for name in vpc gw out; do
    ip netns add $name
    ip -n $name link set lo up
done
ip link add eth0 netns gw type veth peer name eth0 netns vpc
ip link add net1 netns gw type veth peer name eth0 netns out
ip -n vpc addr add 10.0.1.10/24 dev eth0
ip -n gw addr add 10.0.1.254/24 dev eth0
ip -n gw addr add 203.0.113.2/24 dev net1
ip -n out addr add 203.0.113.1/24 dev eth0
for place in "vpc eth0" "gw eth0" "gw net1" "out eth0"; do
    ip -n ${place% *} link set ${place#* } up
done
ip -n vpc route add default via 10.0.1.254
ip netns exec out xtask verify-udp serve 7 &

if [ -e /override ]; then set -- --object /vpc-gateway.o; else set --; fi
vpc-gateway run --gateway gw1 --config /manifests --netns gw "$@" >/run/log 2>&1 &
gateway=$!
tries=0
until vpc-gateway status --gateway gw1 >/dev/null 2>&1 || [ $tries = 480 ]; do
    kill -0 $gateway 2>/dev/null || break
    sleep 0.5
    tries=$((tries + 1))
done

if kill -0 $gateway; then
    section answer
    ip netns exec vpc xtask verify-udp ask 203.0.113.1:7 40000
    section programs
    bpftool -j prog show
    section fdinfo
    grep -h -E '^(prog_id|verified_insns):' /proc/$gateway/fdinfo/*
    # The programs that end sessions run every 5 s; a failure becomes a problem of the status.
    sleep 6
    section status
    vpc-gateway status --gateway gw1 --json
    section rules
    vpc-gateway rules --gateway gw1 --json
    kill $gateway
    wait $gateway
    section detach
    vpc-gateway detach --gateway gw1 && echo detached
fi
section log
cat /run/log

section cases
export VPC_GATEWAY_EBPF_OBJECT=/vpc-gateway.o GATEWAY_REQUIRE_KERNEL=1
packet-cases --nocapture --exact every_case_in_the_kernel_over_both
echo "exit code $?"
section end
sync
reboot -f
