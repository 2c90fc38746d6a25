//! Environment variables in a configuration text, as LiteFS expands them before it reads the YAML.
//!
//! `$NAME` and `${NAME}` become the variable's value, or nothing when it is not set.
//! `${NAME == 'text'}`, `${NAME != "text"}` and `${NAME == OTHER}` become `true` or `false`.
//! A `$` before anything else stays. `HOSTNAME` falls back to the host's name.

/// Replaces every variable in `text`; `lookup` answers with a variable's value, if it is set.
///
/// Errors name the line (from 1) of a `${` that has no end or no content.
pub(super) fn expand(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, (usize, String)> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let line = text[..text.len() - after.len()].matches('\n').count() + 1;
        if let Some(inner) = after.strip_prefix('{') {
            let end = inner.find(['}', '\n']).filter(|&i| inner.as_bytes()[i] == b'}');
            let end = end.ok_or_else(|| (line, "`${` without `}`".to_owned()))?;
            let expression = inner[..end].trim();
            if expression.is_empty() {
                return Err((line, "`${}` names no variable".to_owned()));
            }
            out.push_str(&evaluate(expression, lookup));
            rest = &inner[end + 1..];
        } else {
            let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
            if end == 0 {
                out.push('$');
            } else {
                out.push_str(&lookup(&after[..end]).unwrap_or_default());
            }
            rest = &after[end..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The process's environment, with `HOSTNAME` falling back to the host's name.
pub(super) fn process_env(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    if name == "HOSTNAME" && value.as_deref().is_none_or(str::is_empty) {
        return super::os_hostname();
    }
    value
}

fn evaluate(expression: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let value = |name: &str| lookup(name).unwrap_or_default();
    match comparison(expression) {
        Some((name, equal, Operand::Text(text))) => ((value(name) == text) == equal).to_string(),
        Some((name, equal, Operand::Variable(other))) => {
            ((value(name) == value(other)) == equal).to_string()
        }
        None => value(expression),
    }
}

enum Operand<'a> {
    Text(&'a str),
    Variable(&'a str),
}

/// Splits `NAME == operand` or `NAME != operand`; `None` if `text` is no comparison.
fn comparison(text: &str) -> Option<(&str, bool, Operand<'_>)> {
    let name_len = text.find(|c| !is_word(c)).filter(|&n| n > 0)?;
    let (name, rest) = text.split_at(name_len);
    let rest = rest.trim_start();
    let (equal, rest) = match rest.strip_prefix("==") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix("!=")?),
    };
    let rest = rest.trim_start();
    for quote in ['\'', '"'] {
        if let Some(inner) = rest.strip_prefix(quote).and_then(|r| r.strip_suffix(quote)) {
            return Some((name, equal, Operand::Text(inner)));
        }
    }
    let is_variable = !rest.is_empty() && rest.chars().all(is_word);
    is_variable.then_some((name, equal, Operand::Variable(rest)))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "A" => Some("x".into()),
            "B" => Some("x".into()),
            "REGION" => Some("ams".into()),
            _ => None,
        }
    }

    /// The cases of LiteFS's own test of its expansion (cmd/litefs/config_test.go), and its rules.
    #[test]
    fn expressions_mean_what_they_mean_in_litefs() {
        for (text, want) in [
            ("a $A ${A} ${ A } end", "a x x x end"),
            ("${REGION == 'ams'}", "true"),
            ("${ REGION == 'ams' }", "true"),
            ("${REGION != 'ams'}", "false"),
            ("${REGION=='bos'}", "false"),
            ("${REGION == \"ams\"}", "true"),
            ("${REGION != \"bos\"}", "true"),
            ("${A == B}", "true"),
            ("${A != B}", "false"),
            ("${A == REGION}", "false"),
            ("${UNSET == ''}", "true"),
            ("[$UNSET][${UNSET}]", "[][]"),
            ("costs 5$, or $", "costs 5$, or $"),
            ("$A_B|$A-B", "|x-B"),
        ] {
            assert_eq!(expand(text, &env).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn a_broken_expression_is_an_error_with_its_line() {
        assert_eq!(expand("a\nb ${A\n}", &env).unwrap_err().0, 2);
        assert_eq!(expand("\n\n${ }", &env).unwrap_err().0, 3);
    }
}
