// What the stand-in of NVRTC gives as a CUBIN and the stand-in of libcuda takes: lines of text behind a line that names
// it.
#pragma once
#include <sstream>
#include <string>

namespace emu::device {

constexpr const char* IMAGE = "emulated cubin";

struct Image {
  std::string file;          // name of the source
  std::string architecture;  // sm_90a
  std::string options;

  std::string text() const {
    return std::string(IMAGE) + "\nfile " + file + "\narchitecture " + architecture + "\noptions " + options + "\n";
  }
  static Image of(const std::string& text) {
    Image image;
    std::istringstream lines(text);
    std::string line;
    while (std::getline(lines, line)) {
      size_t space = line.find(' ');
      std::string key = line.substr(0, space), value = space == line.npos ? "" : line.substr(space + 1);
      if (key == "file") image.file = value;
      if (key == "architecture") image.architecture = value;
      if (key == "options") image.options = value;
    }
    return image;
  }
};

}  // namespace emu::device
