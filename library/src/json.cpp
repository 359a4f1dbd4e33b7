#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace srgan_fast::host {
namespace {

constexpr int kMostLevels = 32;
constexpr size_t kMostValues = 1 << 20;  // what a million of them take is bounded, whatever the file claims

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json result = value(0);
    blanks();
    if (at_ != text_.size()) error("something after the end");
    return result;
  }

 private:
  [[noreturn]] void error(const char* what) const {
    throw JsonError{std::string(what) + " at byte " + std::to_string(at_)};
  }

  bool more() const { return at_ < text_.size(); }

  void blanks() {
    while (more() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int level) {
    if (level > kMostLevels) error("too many levels");
    if (++values_ > kMostValues) error("too many values");
    blanks();
    if (!more()) error("an early end");
    Json result;
    switch (text_[at_]) {
      case '{':
        object(result, level);
        break;
      case '[':
        array(result, level);
        break;
      case '"':
        result.kind = Json::kString;
        result.text = string();
        break;
      default:
        word_or_number(result);
    }
    return result;
  }

  void object(Json& result, int level) {
    result.kind = Json::kObject;
    ++at_;
    blanks();
    if (take("}")) return;
    do {
      blanks();
      if (!more() || text_[at_] != '"') error("no name of a member");
      std::string name = string();
      blanks();
      if (!take(":")) error("no colon");
      result.members.emplace_back(std::move(name), value(level + 1));
      blanks();
    } while (take(","));
    if (!take("}")) error("an object without an end");
    std::vector<std::string_view> names;
    for (const auto& member : result.members) names.push_back(member.first);
    std::sort(names.begin(), names.end());
    if (std::adjacent_find(names.begin(), names.end()) != names.end()) error("two members of one name");
  }

  void array(Json& result, int level) {
    result.kind = Json::kArray;
    ++at_;
    blanks();
    if (take("]")) return;
    do {
      result.items.push_back(value(level + 1));
      blanks();
    } while (take(","));
    if (!take("]")) error("an array without an end");
  }

  void word_or_number(Json& result) {
    if (take("null")) return;
    result.kind = Json::kBoolean;
    result.boolean = text_[at_] == 't';
    if (take("true") || take("false")) return;
    result.kind = Json::kNumber;
    const double infinity = std::numeric_limits<double>::infinity();
    if (take("NaN")) {
      result.number = std::numeric_limits<double>::quiet_NaN();
    } else if (take("Infinity")) {
      result.number = infinity;
    } else if (take("-Infinity")) {
      result.number = -infinity;
    } else {
      number(result);
    }
  }

  void digits() {
    if (!more() || text_[at_] < '0' || text_[at_] > '9') error("no value");
    while (more() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
  }

  void number(Json& result) {
    const size_t start = at_;
    take("-");
    if (!take("0")) digits();
    if (take(".")) digits();
    if (take("e") || take("E")) {
      if (!take("+")) take("-");
      digits();
    }
    const char *first = text_.data() + start, *last = text_.data() + at_;
    const auto [end, code] = std::from_chars(first, last, result.number);
    if (code != std::errc() || end != last) error("a number beyond double");
  }

  std::string string() {
    std::string result;
    for (++at_;;) {
      if (!more()) error("a string without an end");
      const unsigned char c = static_cast<unsigned char>(text_[at_++]);
      if (c == '"') return result;
      if (c < 0x20) error("a control character in a string");
      if (c == '\\') {
        escape(result);
      } else {
        result += static_cast<char>(c);
      }
    }
  }

  void escape(std::string& result) {
    if (!more()) error("a string without an end");
    static constexpr std::string_view kShort = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const char c = text_[at_++];
    if (const size_t i = kShort.find(c); i != kShort.npos) {
      result += kMeant[i];
      return;
    }
    if (c != 'u') error("an unknown escape");
    uint32_t code = four_digits();
    if (code >= 0xD800 && code < 0xDC00) {
      if (!take("\\u")) error("half a character");
      const uint32_t low = four_digits();
      if (low < 0xDC00 || low >= 0xE000) error("half a character");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
      error("half a character");
    }
    if (code < 0x80) {
      result += static_cast<char>(code);
      return;
    }
    const int more_bytes = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned kLead[] = {0, 0xC0, 0xE0, 0xF0};
    result += static_cast<char>(kLead[more_bytes] | code >> 6 * more_bytes);
    for (int i = more_bytes - 1; i >= 0; --i) result += static_cast<char>(0x80 | (code >> 6 * i & 0x3F));
  }

  uint32_t four_digits() {
    uint32_t code = 0;
    if (text_.size() - at_ < 4) error("an early end");
    const char *first = text_.data() + at_, *last = first + 4;
    const auto [end, problem] = std::from_chars(first, last, code, 16);
    if (problem != std::errc() || end != last) error("an unknown escape");
    at_ += 4;
    return code;
  }

  std::string_view text_;
  size_t at_ = 0, values_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view name) const {
  for (const auto& member : members)
    if (member.first == name) return &member.second;
  return nullptr;
}

std::optional<uint64_t> Json::whole() const {
  if (kind != kNumber || !(number >= 0) || number > 9007199254740992.0 || number != std::floor(number)) return {};
  return static_cast<uint64_t>(number);
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace srgan_fast::host
