//! Label selectors as Kubernetes has them: which labels they take.

use std::collections::BTreeSet;

use super::findings::{Findings, Site};
use crate::crd::{LabelExpression, LabelSelector, PodSelector};
use crate::rejection::Problem;
use crate::source::pods::Labels;

/// One entry of `spec.selectors`. What is absent takes everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector {
    /// Its place in the list.
    pub(super) index: usize,
    pub(super) namespaces: Option<Requirements>,
    pub(super) pods: Option<Requirements>,
}

/// What labels have to be. All of it has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirements(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(BTreeSet<String>),
    /// A label that is not there is not in it either.
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

impl Requirements {
    /// Whether labels are what they have to be.
    pub(super) fn take(&self, labels: &Labels) -> bool {
        self.0.iter().all(|Requirement { key, test }| {
            let value = labels.get(key);
            match test {
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// Reads the selectors of a gateway. One with a mistake is rejected, and takes nobody.
pub(super) fn read_all(
    site: &Site,
    selectors: &[PodSelector],
    findings: &mut Findings,
) -> Vec<Selector> {
    let mut all = Vec::new();
    for (index, selector) in selectors.iter().enumerate() {
        let site = site.entry("selectors", index);
        let mut part = |name, part: &Option<LabelSelector>| match part {
            None => Ok(None),
            Some(part) => read(&site, name, part, findings).map(Some).ok_or(()),
        };
        let namespaces = part("namespaceSelector", &selector.namespace_selector);
        let pods = part("podSelector", &selector.pod_selector);
        if let (Ok(namespaces), Ok(pods)) = (namespaces, pods) {
            all.push(Selector { index, namespaces, pods });
        }
    }
    all
}

fn read(
    site: &Site,
    name: &str,
    selector: &LabelSelector,
    findings: &mut Findings,
) -> Option<Requirements> {
    if selector.match_labels.is_empty() && selector.match_expressions.is_empty() {
        let expected = "matchLabels or matchExpressions; without this field everything is selected";
        findings.reject(site, name, Problem::Missing { expected });
        return None;
    }
    let mut requirements = Vec::new();
    let mut good = true;
    for (key, value) in &selector.match_labels {
        let field = format!("{name}.matchLabels.{key}");
        let checked = check_key(key).and_then(|()| check_value(value));
        good &= findings.accept(site, &field, checked).is_some();
        let test = Test::In([value.clone()].into());
        requirements.push(Requirement { key: key.clone(), test });
    }
    for (index, expression) in selector.match_expressions.iter().enumerate() {
        let field = format!("{name}.matchExpressions[{index}]");
        match requirement(expression) {
            Ok(requirement) => requirements.push(requirement),
            Err((part, problem)) => {
                findings.reject(site, &format!("{field}.{part}"), *problem);
                good = false;
            }
        }
    }
    good.then_some(Requirements(requirements))
}

/// The field of an expression that is wrong, and how.
type Wrong = (&'static str, Box<Problem>);

fn requirement(expression: &LabelExpression) -> Result<Requirement, Wrong> {
    let LabelExpression { key, operator, values } = expression;
    let wrong = |part, problem| (part, Box::new(problem));
    check_key(key).map_err(|problem| wrong("key", problem))?;
    for value in values {
        check_value(value).map_err(|problem| wrong("values", problem))?;
    }
    let takes_values = match operator.as_str() {
        "In" | "NotIn" => true,
        "Exists" | "DoesNotExist" => false,
        other => {
            let (value, not) = (format!("{other:?}"), "an operator");
            let expected = "In, NotIn, Exists or DoesNotExist";
            return Err(wrong("operator", Problem::Invalid { value, not, expected }));
        }
    };
    match values.first() {
        None if takes_values => {
            let expected = "at least one value";
            return Err(wrong("values", Problem::Missing { expected }));
        }
        Some(value) if !takes_values => {
            let (value, not) = (value.clone(), "for this operator");
            let expected = "no values";
            return Err(wrong("values", Problem::Invalid { value, not, expected }));
        }
        _ => {}
    }
    let set = values.iter().cloned().collect();
    let test = match operator.as_str() {
        "In" => Test::In(set),
        "NotIn" => Test::NotIn(set),
        "Exists" => Test::Exists,
        _ => Test::DoesNotExist,
    };
    Ok(Requirement { key: key.clone(), test })
}

/// Letters, digits, and `-`, `_` and `.` between them; at most 63 of them.
fn is_word(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(inner) && bytes.len() <= 63
}

fn check_key(key: &str) -> Result<(), Problem> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_domain = |prefix: &str| {
        let lower = |byte: u8| byte.is_ascii_lowercase() || b"-.".contains(&byte);
        let inner = prefix.bytes().all(|byte| lower(byte) || byte.is_ascii_digit());
        inner && prefix.len() <= 253 && prefix.split('.').all(is_word)
    };
    if is_word(name) && prefix.is_none_or(is_domain) {
        return Ok(());
    }
    Err(Problem::Invalid {
        value: format!("{key:?}"),
        not: "the key of a label",
        expected: "one such as app or example.com/app",
    })
}

fn check_value(value: &str) -> Result<(), Problem> {
    if value.is_empty() || is_word(value) {
        return Ok(());
    }
    Err(Problem::Invalid {
        value: format!("{value:?}"),
        not: "the value of a label",
        expected: "at most 63 letters, digits, '-', '_' and '.'",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(operator: &str, values: &[&str]) -> LabelExpression {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        LabelExpression { key: "env".into(), operator: operator.into(), values }
    }

    fn takes(operator: &str, values: &[&str], labels: &[(&'static str, &'static str)]) -> bool {
        let requirement = requirement(&expression(operator, values)).unwrap();
        Requirements(vec![requirement]).take(&Labels::new(labels.iter().copied()))
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let (prod, test, none) = (&[("env", "prod")][..], &[("env", "test")][..], &[][..]);
        for (operator, values, expected) in [
            ("In", &["prod", "stage"][..], [true, false, false]),
            ("NotIn", &["prod", "stage"], [false, true, true]),
            ("Exists", &[], [true, true, false]),
            ("DoesNotExist", &[], [false, false, true]),
        ] {
            let found = [prod, test, none].map(|labels| takes(operator, values, labels));
            assert_eq!(found, expected, "{operator}");
        }
    }

    #[test]
    fn everything_has_to_hold() {
        let all = ["In", "Exists"].map(|operator| {
            let values: &[&str] = if operator == "In" { &["prod"] } else { &[] };
            requirement(&expression(operator, values)).unwrap()
        });
        let mut all = Requirements(all.into());
        assert!(all.take(&Labels::new([("env", "prod")])));
        all.0.push(requirement(&expression("DoesNotExist", &[])).unwrap());
        assert!(!all.take(&Labels::new([("env", "prod")])));
    }

    #[test]
    fn what_kubernetes_refuses_is_refused_with_its_field() {
        for (operator, values, field) in [
            ("in", &["a"][..], "operator"),
            ("", &[], "operator"),
            ("Gt", &["1"], "operator"),
            ("In", &[], "values"),
            ("NotIn", &[], "values"),
            ("Exists", &["a"], "values"),
            ("DoesNotExist", &[""], "values"),
            ("In", &["-a"], "values"),
        ] {
            let (found, _) = requirement(&expression(operator, values)).unwrap_err();
            assert_eq!(found, field, "{operator} {values:?}");
        }
        for bad in ["", "a b", "/a", "a/", "a/b/c", "Example.com/a", "-a", "ä"] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "A_b-c.d", "example.com/a", "kubernetes.io/metadata.name"] {
            assert!(check_key(good).is_ok(), "{good:?}");
        }
        assert!(check_value("").is_ok() && check_value(&"a".repeat(64)).is_err());
    }
}
