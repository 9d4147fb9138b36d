//! Pages of several processes as one: the format wants all samples of a metric together.

use std::collections::BTreeMap;

use super::page::{Labels, escape};

/// The metrics of all pages, each once, in the order in which they first come.
pub(super) fn merged(own: &str, others: &[(String, Labels)]) -> String {
    let mut merged = Merged::default();
    merged.add(own, "");
    for (page, labels) in others {
        let mut text = String::new();
        for (label, value) in labels {
            text.push_str(label);
            text.push_str("=\"");
            escape(&mut text, value);
            text.push_str("\",");
        }
        merged.add(page, &text);
    }
    merged.blocks.into_iter().flat_map(|block| [block.head, block.samples]).collect()
}

#[derive(Default)]
struct Merged<'p> {
    places: BTreeMap<&'p str, usize>,
    blocks: Vec<Block>,
}

/// A metric: its two lines of comment, and its samples.
#[derive(Default)]
struct Block {
    head: String,
    samples: String,
}

impl<'p> Merged<'p> {
    /// Adds a page, whose samples get these labels, written as they stand before others.
    fn add(&mut self, page: &'p str, labels: &str) {
        let (mut place, mut fresh) = (None, false);
        for line in page.lines() {
            if let Some(about) = line.strip_prefix("# HELP ") {
                let name = about.split(' ').next().unwrap_or_default();
                let next = self.blocks.len();
                let at = *self.places.entry(name).or_insert(next);
                fresh = at == next;
                if fresh {
                    self.blocks.push(Block::default());
                }
                place = Some(at);
            }
            let Some(block) = place.and_then(|place| self.blocks.get_mut(place)) else { continue };
            if line.starts_with('#') {
                if fresh {
                    block.head.push_str(line);
                    block.head.push('\n');
                }
                continue;
            }
            labelled(&mut block.samples, line, labels);
        }
    }
}

/// Adds a sample with more labels.
fn labelled(samples: &mut String, line: &str, labels: &str) {
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    samples.push_str(name);
    match rest.strip_prefix('{') {
        Some(more) => {
            samples.push('{');
            samples.push_str(labels);
            samples.push_str(more);
        }
        None if labels.is_empty() => samples.push_str(rest),
        None => {
            samples.push('{');
            samples.push_str(labels.trim_end_matches(','));
            samples.push('}');
            samples.push_str(rest);
        }
    }
    samples.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_of_a_metric_stand_together_and_say_whose_they_are() {
        let own = "# HELP a A.\n# TYPE a gauge\na 1\n";
        let other = |value: u32| {
            format!(
                "# HELP a A.\n# TYPE a gauge\na {value}\n# HELP b B.\n# TYPE b counter\n\
                 b{{x=\"1 {{\"}} {value}\n"
            )
        };
        let of = |pod: &str| vec![("pod", pod.to_owned())];
        let all = merged(own, &[(other(2), of("n/p")), (other(3), of("q\"q"))]);
        let wanted = "# HELP a A.\n# TYPE a gauge\na 1\na{pod=\"n/p\"} 2\na{pod=\"q\\\"q\"} 3\n\
            # HELP b B.\n# TYPE b counter\nb{pod=\"n/p\",x=\"1 {\"} 2\nb{pod=\"q\\\"q\",x=\"1 {\"} 3\n";
        assert_eq!(all, wanted);
    }
}
