#!/usr/bin/env bash
# What kube-ovn-controller runs in a gateway pod: bash /kube-ovn/nat-gateway.sh VERB RULE...
# Everything is done by vpc-gateway; `vpc-gateway exec --help` lists the verbs.
exec vpc-gateway exec -- "$@"
