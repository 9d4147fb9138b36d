//! Manifests, and what they are changed to: from text to plans.

use std::collections::BTreeSet;

use gateway_userspace::desired::{Previous, resolve_after, resolve_all};
use gateway_userspace::encode::encode;
use gateway_userspace::image::MapImage;
use gateway_userspace::plan::diff;
use gateway_userspace::source::{Snapshot, yaml};

/// Between the manifests before and after.
const SEPARATOR: &str = "%%%\n";

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (before, after) = text.split_once(SEPARATOR).unwrap_or((&text, &text));
    let [before, after] = [before, after].map(|text| {
        let mut snapshot = Snapshot::default();
        yaml::parse("input.yaml", text, &mut snapshot);
        snapshot
    });
    let first = resolve_all(&before, &Previous::default());
    for rejection in &first.rejections {
        assert!(!rejection.to_string().is_empty());
    }
    for note in &first.notes {
        assert!(!note.to_string().is_empty());
    }
    for gateway in first.states.keys() {
        carry_out(gateway, &before, &after);
    }
}

/// Applies the first manifests to empty maps, and the second ones to what is there then.
fn carry_out(gateway: &str, before: &Snapshot, after: &Snapshot) {
    let mut live = MapImage::default();
    let mut previous = Previous::default();
    for snapshot in [before, after, after] {
        let resolution = resolve_after(snapshot, gateway, &previous);
        let again = resolve_after(snapshot, gateway, &previous);
        assert_eq!(resolution.state, again.state, "resolved twice, with two results");
        let (allocations, active) = (resolution.allocations, resolution.active);
        previous = Previous { allocations, active };
        // A gateway that is gone from the manifests is stopped by its daemon.
        let Some(state) = resolution.state else { return };
        let settled = resolve_after(snapshot, gateway, &previous).state;
        assert_eq!(settled.as_ref(), Some(&state), "resolved again, with another result");
        let image = encode(&state, None, &live, &BTreeSet::new()).image;
        for change in &diff(&live, &image).changes {
            live.apply(change);
        }
        assert_eq!(live, image, "the plan leads elsewhere");
        let image = encode(&state, None, &live, &BTreeSet::new()).image;
        let plan = diff(&live, &image);
        assert_eq!(plan.len(), 0, "planned twice: {}", lines(&plan));
    }
}

fn lines(plan: &gateway_userspace::plan::Plan) -> String {
    plan.lines().map(|line| line.to_string()).collect::<Vec<_>>().join("\n")
}
