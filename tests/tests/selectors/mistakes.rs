//! Bad input.

use super::{NETWORKS, RED, gateway, namespace, notes, parse, pod, rejections, taken};

#[test]
fn mistakes_are_named_and_the_rest_works() {
    let good = "{podSelector: {matchLabels: {team: red}}}";
    let object = "VpcEgressGateway/egress: spec.selectors[0].";
    for (bad, wanted) in [
        (
            "{podSelector: {}}",
            "podSelector: missing, expected matchLabels or matchExpressions; without this field everything is selected",
        ),
        (
            "{namespaceSelector: {matchLabels: {}}}",
            "namespaceSelector: missing, expected matchLabels or matchExpressions; without this field everything is selected",
        ),
        (
            "{podSelector: {matchLabels: {'a b': c}}}",
            "podSelector.matchLabels.a b: \"a b\" is not the key of a label, expected one such as app or example.com/app",
        ),
        (
            "{podSelector: {matchLabels: {a: 'b c'}}}",
            "podSelector.matchLabels.a: \"b c\" is not the value of a label, expected at most 63 letters, digits, '-', '_' and '.'",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
            "podSelector.matchExpressions[0].operator: \"in\" is not an operator, expected In, NotIn, Exists or DoesNotExist",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a}]}}",
            "podSelector.matchExpressions[0].operator: \"\" is not an operator, expected In, NotIn, Exists or DoesNotExist",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}",
            "namespaceSelector.matchExpressions[0].values: missing, expected at least one value",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            "namespaceSelector.matchExpressions[0].values: b is not for this operator, expected no values",
        ),
    ] {
        let all = parse(
            &[
                NETWORKS,
                &gateway("egress", &format!("selectors: [{bad}, {good}]")),
                &pod("a", "team: red", "10.0.1.5", ""),
            ]
            .concat(),
        );
        assert_eq!(rejections(&all), [format!("{object}{wanted}")], "{bad}");
        assert_eq!(taken(&all, "egress"), ["10.0.1.5"], "{bad}");
    }
    let bad_pods = [
        (
            pod("bad", "team: red", "10.0.1", ""),
            true,
            "VpcEgressGateway/egress: spec.selectors[0]: Pod/shop/bad: metadata.annotations.ovn.kubernetes.io/ip_address: \"10.0.1\" is not an IP address or one of each family, so the pod does not leave by it",
        ),
        (
            pod("bad", "", "10.0.1.6", "").replace("labels: {}", "labels: [a]"),
            false,
            "Pod/shop/bad: metadata.labels: is a list, expected an object",
        ),
        (
            pod("bad", "", "10.0.1.6", "").replace("labels: {}", "labels: {a: true}"),
            false,
            "Pod/shop/bad: metadata.labels.a: true is a boolean, expected a string (put it in quotes)",
        ),
        (
            pod("bad", "", "10.0.1.6", "spec: {hostNetwork: perhaps}"),
            false,
            "Pod/shop/bad: spec.hostNetwork: perhaps is a string, expected true or false",
        ),
        (
            pod("bad", "", "10.0.1.6", "").replace("  name: bad\n", ""),
            false,
            "Pod/shop/: metadata.name: missing, expected the name of the object",
        ),
        (
            namespace("bad", "a: [b]"),
            false,
            "Namespace/bad: metadata.labels.a: is a list, expected a string",
        ),
    ];
    for (bad, noted, wanted) in bad_pods {
        let all = parse(
            &[NETWORKS, &gateway("egress", RED), &pod("a", "team: red", "10.0.1.5", ""), &bad]
                .concat(),
        );
        let said = if noted { notes(&all) } else { rejections(&all) };
        assert_eq!(said, [wanted], "{bad}");
        assert_eq!(taken(&all, "egress"), ["10.0.1.5"], "{bad}");
    }
}
