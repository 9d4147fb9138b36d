#!/usr/bin/env bash
# LoadBalancer Services of Kube-OVN use the same image, and program iptables by this script.
echo "lb-svc.sh: this image does not serve LoadBalancer Services (enable-lb-svc);" \
    "leave the image of Kube-OVN in ovn-vpc-nat-config where they are used" >&2
exit 1
